// Playback: stored groups of pictures, one after the other, into a source buffer. Gaps are jumped over and
// told; the end of what is stored leads to live.

import { ApiError, call, refusal } from "./api.js";
import { Feed } from "./feed.js";

/** Buffered ahead of the playhead, in seconds of watching. */
const AHEAD_S = 12;

/** Kept behind the playhead, for small steps back. */
const BEHIND_S = 20;

/** How often the newest recording is asked for what has come since; and how early, before all is shown. */
const NEWEST_MS = 1000;
const NEWEST_AHEAD_S = 5;

/** What has just happened is not on the disk yet; so long it is waited for. */
const UNSECURED_MS = 20_000;

/** Between attempts after a failure; doubled up to the last, with jitter. */
const FIRST_RETRY_MS = 1000;
const LONGEST_RETRY_MS = 10_000;

/**
 * @typedef {object} PlaybackEvents
 * @property {() => void} changed state or picture
 * @property {(from: number, to: number) => void} gap jumped over; milliseconds since 1970
 * @property {() => void} newest everything that is stored was shown
 * @property {(problem: string | null) => void} failed nothing to show, and why; `null`: it goes on
 */

export class PlaybackPlayer {
  /**
   * @param {HTMLVideoElement} video
   * @param {number} camera
   * @param {number} start milliseconds since 1970
   * @param {PlaybackEvents} events
   */
  constructor(video, camera, start, events) {
    this.video = video;
    this.camera = camera;
    this.events = events;
    this.speed = 1;
    this.playing = true;
    this.closed = false;
    this.loading = true;
    this.hasSound = false;
    /** Where the playhead was sent. @type {number} */
    this.target = start;
    /**
     * What to ask for next, in the server's own words: they are finer than this clock, and a rounded time
     * would lead into the group before. `null`: nothing newer was stored when last asked.
     * @type {string | null}
     */
    this.next = (start / 1000).toFixed(3);
    /** The end of what was loaded: for the server, and for us. */
    this.lastEndText = this.next;
    this.lastEnd = start;
    /** @type {string | null} */
    this.init = null;
    /** Stretches of nothing inside what is buffered: media times. @type {{from: number, to: number}[]} */
    this.gaps = [];
    this.placed = false;
    this.busy = false;
    /** Why the last request failed, and when it is sent again. @type {string | null} */
    this.problem = null;
    this.retryAt = 0;
    this.retry = FIRST_RETRY_MS;
    /** What the page was told. @type {string | null} */
    this.told = null;
    /** @type {number | undefined} */
    this.askAgain = undefined;
    this.abort = new AbortController();
    this.feed = new Feed(video, (problem) => events.failed(`The picture stopped: ${problem}.`));
    this.feed.updated = () => this.place();
    this.tick = setInterval(() => this.follow(), 100);
    video.addEventListener("seeked", events.changed);
    this.load();
  }

  /** Loads until enough is buffered; called again by `follow`. */
  async load() {
    if (this.busy || Date.now() < this.retryAt) return;
    this.busy = true;
    try {
      while (!this.closed && this.wantsMore) {
        const moved = await this.loadGroup();
        this.problem = null;
        this.retry = FIRST_RETRY_MS;
        if (!moved) break;
      }
    } catch (error) {
      // A browser says no more of a network that failed than "Failed to fetch".
      this.problem = error instanceof TypeError ? "The management server cannot be reached; trying again." : error instanceof Error ? error.message : String(error);
      this.retryAt = Date.now() + this.retry * (0.75 + Math.random() / 2);
      this.retry = Math.min(this.retry * 2, LONGEST_RETRY_MS);
    } finally {
      this.busy = false;
    }
  }

  get wantsMore() {
    const ahead = this.lastEnd - (this.feed.moment ?? this.target);
    const speed = Math.max(1, this.speed);
    if (this.next === null && (Date.now() < (this.askAgain ?? 0) || ahead > NEWEST_AHEAD_S * 1000 * speed)) return false;
    return ahead < AHEAD_S * 1000 * speed;
  }

  /** @returns {Promise<boolean>} whether there was something */
  async loadGroup() {
    const isNew = this.next === null || Date.now() - this.lastEnd < UNSECURED_MS;
    if (isNew && !(await this.isStored(this.lastEnd))) {
      this.next = null;
      this.askAgain = Date.now() + NEWEST_MS;
      if (this.init !== null || Date.now() - this.lastEnd < UNSECURED_MS) return false;
    }
    const asked = this.next ?? this.lastEndText;
    const path = `/api/v1/cameras/${this.camera}/fragment?time=${encodeURIComponent(asked)}`;
    const response = await fetch(path, { signal: this.abort.signal });
    if (!response.ok) throw await refusal(response);
    const header = (/** @type {string} */ name) => response.headers.get(`x-homing-${name}`) ?? "";
    const start = Date.parse(header("start"));
    const end = Date.parse(header("end"));
    const init = header("init");
    const next = header("next");
    const bytes = await response.arrayBuffer();
    if (this.closed) return false;
    if (init !== this.init) await this.loadInit(init, header("mime"));
    this.feed.append(bytes);
    const base = /** @type {number} */ (this.feed.base);
    if (!this.placed && start > this.target + 1000) {
      // Nothing was recorded where the user pointed: begin with what comes next.
      this.events.gap(this.target, start);
      this.target = start;
    } else if (start - this.lastEnd > 400 && this.lastEnd > this.target) {
      this.gaps.push({ from: this.lastEnd / 1000 - base, to: start / 1000 - base });
    }
    const moved = end > this.lastEnd;
    this.lastEnd = end;
    this.lastEndText = header("end");
    this.next = next || null;
    if (this.next === null) this.askAgain = Date.now() + NEWEST_MS;
    // The same group again means that nothing has come since.
    return moved;
  }

  /** Whether anything is on the disk after a moment of the last seconds. @param {number} moment */
  async isStored(moment) {
    const now = Date.now();
    if (now - moment < 200) return false;
    const path = `/api/v1/cameras/${this.camera}/timeline?start=${(moment / 1000).toFixed(3)}&end=${(now / 1000).toFixed(3)}`;
    /** @type {{ranges: {end: string}[]}} */
    const { ranges } = await call("GET", path);
    return ranges.some(({ end }) => Date.parse(end) > moment + 100);
  }

  /** @param {string} init @param {string} mime */
  async loadInit(init, mime) {
    if (!Feed.plays(mime)) throw new ApiError(0, { code: "unsupported", message: `This browser cannot play ${mime}.` });
    const response = await fetch(`/api/v1/cameras/${this.camera}/init/${encodeURIComponent(init)}`, { signal: this.abort.signal });
    if (!response.ok) throw await refusal(response);
    this.feed.begin(await response.arrayBuffer(), mime);
    this.init = init;
    this.hasSound = mime.includes(",");
  }

  /** Puts the playhead where it was sent, once there is something to show. */
  place() {
    const { feed, video } = this;
    if (this.placed || feed.base === undefined || feed.buffered.length === 0) return;
    const wanted = this.target / 1000 - feed.base;
    const first = feed.buffered.start(0);
    const last = feed.end;
    if (last <= first) return;
    this.placed = true;
    this.loading = false;
    video.currentTime = Math.min(Math.max(wanted, first), last - 0.02);
    video.playbackRate = this.speed;
    if (this.playing) video.play().catch(() => undefined);
    this.events.changed();
  }

  follow() {
    const { feed, video } = this;
    if (this.closed) return;
    this.tell();
    if (!this.placed) return void this.load();
    const gap = this.gaps.find(({ from, to }) => video.currentTime >= from - 0.15 && video.currentTime < to);
    if (gap && feed.end >= gap.to) {
      this.gaps = this.gaps.filter((other) => other !== gap);
      video.currentTime = gap.to + 0.01;
      const base = feed.base ?? 0;
      this.events.gap((gap.from + base) * 1000, (gap.to + base) * 1000);
    }
    const left = feed.end - video.currentTime;
    this.loading = this.playing && left < 0.05;
    // Shortly before the end the browser stops by itself and waits for more.
    if (this.playing && this.next === null && (left < 0.3 || (left < this.speed && video.readyState < 3))) this.events.newest();
    feed.forget(BEHIND_S);
    this.load();
    this.events.changed();
  }

  /** A request that failed is told when there is nothing left to show without it. */
  tell() {
    const { feed, video } = this;
    const problem = !this.placed || feed.end - video.currentTime < 0.3 ? this.problem : null;
    if (problem === this.told) return;
    this.told = problem;
    this.events.failed(problem);
  }

  /** @param {boolean} playing */
  play(playing) {
    this.playing = playing;
    if (playing) this.video.play().catch(() => undefined);
    else this.video.pause();
    this.events.changed();
  }

  /** Goes to a moment that is buffered. @param {number} moment @returns {boolean} whether it was */
  seek(moment) {
    const { feed, video } = this;
    if (!this.placed || feed.base === undefined) return false;
    const wanted = moment / 1000 - feed.base;
    for (let at = 0; at < feed.buffered.length; at += 1) {
      if (wanted < feed.buffered.start(at) || wanted > feed.buffered.end(at)) continue;
      video.currentTime = wanted;
      this.events.changed();
      return true;
    }
    return false;
  }

  /** @param {number} speed 0.5 to 8 */
  setSpeed(speed) {
    this.speed = speed;
    this.video.playbackRate = speed;
    this.load();
  }

  /** What is on the screen, in milliseconds since 1970. */
  get moment() {
    return this.placed ? (this.feed.moment ?? this.target) : this.target;
  }

  close() {
    this.closed = true;
    clearInterval(this.tick);
    this.abort.abort();
    this.video.removeEventListener("seeked", this.events.changed);
    this.feed.close();
    this.video.playbackRate = 1;
  }
}
