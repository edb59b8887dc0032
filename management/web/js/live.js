// Live: the camera's stream over a WebSocket into a source buffer, a fragment a frame, shown as it comes.
//
// The playhead stays just behind the newest frame. How far it may be behind is measured, not guessed: the
// slack is what was still unplayed when the next fragment arrived, the least of the last seconds. None
// means that the picture waits for the network; much, that it could be shown earlier. Then it plays a
// little faster, or jumps when it is far behind or the page was in the background.

import { Feed } from "./feed.js";
import { sentence } from "./format.js";
import { holdsTrack, onlyTrack, timescales } from "./mp4.js";

/** A connection that says nothing for so long is dead: cameras send several frames a second. */
const SILENCE_MS = 12000;

/**
 * Slack in seconds that is left for a network that is not even: it is caught up with until `enough`, by
 * playing faster from `tooMuch` on, by a jump from `farBehind` on. A browser that plays sound wants more
 * at hand than one that does not, so sound that nobody hears is left out.
 */
const SILENT = { enough: 0.04, tooMuch: 0.08, farBehind: 0.4 };
const WITH_SOUND = { enough: 0.28, tooMuch: 0.4, farBehind: 1 };

/** The fastest that it plays to catch up. */
const FASTEST = 1.12;

/** The slack is the least of so many milliseconds. */
const SLACK_WINDOW_MS = 1500;

/** Between attempts; doubled up to the last, with jitter. */
const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 10000;

/** In the background for so long: stop, so that nobody pays for what nobody sees. */
const HIDDEN_MS = 15000;

/** Safari's sound breaks when the speed changes; it jumps instead. */
const STEADY_SPEED = /^((?!chrome|android|crios|fxios).)*safari/i.test(navigator.userAgent);

/**
 * @typedef {object} LiveState
 * @property {"connecting" | "waiting" | "playing" | "unsupported"} kind
 * @property {string} [reason] for people
 *
 * @typedef {object} LiveStats
 * @property {number | undefined} latencyMs from the camera's clock to the screen, median of the last frames
 * @property {number} bitrateBps
 * @property {number} fps
 * @property {number} width
 * @property {number} height
 * @property {number} skipped frames
 * @property {number} behindMs behind the newest frame that has arrived
 */

export class LivePlayer {
  /**
   * @param {HTMLVideoElement} video
   * @param {number} camera
   * @param {(state: LiveState) => void} changed
   * @param {boolean} [sound] whether it is heard
   */
  constructor(video, camera, changed, sound = false) {
    this.sound = sound;
    /** The number of the video track. */
    this.track = 1;
    this.video = video;
    this.camera = camera;
    this.changed = changed;
    /** @type {LiveState} */
    this.state = { kind: "connecting" };
    /** @type {WebSocket | null} */
    this.socket = null;
    /** @type {Feed | null} */
    this.feed = null;
    this.retry = FIRST_RETRY_MS;
    this.skipped = 0;
    this.closed = false;
    this.frozen = false;
    this.hasSound = false;
    /** @type {{at: number, bytes: number, frames: number}[]} */
    this.arrived = [];
    /** @type {{at: number, left: number}[]} */
    this.slack = [];
    /** Of the last frames, from the camera's clock to the screen, in milliseconds. @type {number[]} */
    this.latencies = [];
    this.lastMessage = 0;
    this.mime = "";
    this.expectInit = false;
    this.started = false;
    this.resized = () => this.changed(this.state);
    video.addEventListener("resize", this.resized);
    this.onVisibility = () => this.visibility();
    document.addEventListener("visibilitychange", this.onVisibility);
    this.watchdog = setInterval(() => this.watch(), 1000);
    this.measure();
    this.connect();
  }

  /** Every frame that is shown says when it is shown. */
  measure() {
    this.video.requestVideoFrameCallback?.((_, frame) => {
      if (this.closed) return;
      const base = this.feed?.base;
      if (base !== undefined) {
        this.latencies.push(performance.timeOrigin + frame.expectedDisplayTime - (frame.mediaTime + base) * 1000);
        if (this.latencies.length > 25) this.latencies.shift();
      }
      this.measure();
    });
  }

  connect() {
    if (this.closed) return;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/api/v1/cameras/${this.camera}/live`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.lastMessage = performance.now();
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      this.lastMessage = performance.now();
      if (typeof data === "string") this.told(JSON.parse(data));
      else this.fragment(data);
    };
    socket.onclose = () => {
      if (socket !== this.socket) return;
      this.socket = null;
      if (this.state.kind === "playing") this.become({ kind: "connecting", reason: "The connection was lost; trying again." });
      this.again();
    };
  }

  again() {
    if (this.closed || this.timer) return;
    const pause = this.retry * (0.5 + Math.random());
    this.retry = Math.min(this.retry * 2, LONGEST_RETRY_MS);
    this.timer = setTimeout(() => {
      this.timer = undefined;
      if (!this.socket && !document.hidden) this.connect();
    }, pause);
  }

  /** @param {{type: string, mime?: string, reason?: string, frames?: number}} message */
  told(message) {
    switch (message.type) {
      case "start":
        this.begin(message.mime ?? "");
        break;
      case "waiting":
        this.endFeed();
        this.become({ kind: "waiting", reason: sentence(message.reason ?? "") });
        break;
      case "skipped":
        this.skipped += message.frames ?? 0;
        break;
      default:
      // A newer server may tell more.
    }
  }

  /** @param {string} mime */
  begin(mime) {
    this.endFeed();
    this.hasSound = mime.includes(",");
    if (this.hasSound && !this.sound) mime = mime.replace(/,[^"]*/, "");
    this.mime = mime;
    this.expectInit = true;
    if (!Feed.plays(mime)) {
      this.become({ kind: "unsupported", reason: `This browser cannot play ${mime.replace(/^.*codecs=/, "").replaceAll('"', "")}.` });
      this.disconnect();
      return;
    }
    const feed = new Feed(this.video, (problem) => {
      if (this.feed !== feed) return;
      this.feed = null;
      this.become({ kind: "connecting", reason: `The picture stopped (${problem}); trying again.` });
      this.disconnect();
      this.again();
    });
    feed.updated = () => this.follow();
    this.feed = feed;
    this.started = false;
  }

  /** @param {ArrayBuffer} bytes */
  fragment(bytes) {
    const now = performance.now();
    const frames = !this.expectInit && holdsTrack(bytes, this.track) ? 1 : 0;
    this.arrived.push({ at: now, bytes: bytes.byteLength, frames });
    while (this.arrived.length > 0 && this.arrived[0].at < now - 3000) this.arrived.shift();
    const { feed } = this;
    if (!feed) return;
    const silent = this.hasSound && !this.sound;
    if (this.expectInit) {
      this.expectInit = false;
      // Video comes first.
      this.track = timescales(bytes).keys().next().value ?? 1;
      feed.begin(silent ? (onlyTrack(bytes, this.track) ?? bytes) : bytes, this.mime);
      return;
    }
    const wanted = silent ? onlyTrack(bytes, this.track) : bytes;
    if (!wanted) return;
    if (this.started) this.slack.push({ at: now, left: feed.end - this.video.currentTime });
    while (this.slack.length > 0 && this.slack[0].at < now - SLACK_WINDOW_MS) this.slack.shift();
    feed.append(wanted);
  }

  /** @param {boolean} sound whether it is heard from now on */
  setSound(sound) {
    if (this.sound === sound) return;
    this.sound = sound;
    if (!this.hasSound) return;
    // The stream begins anew with the present group of pictures.
    this.disconnect();
    this.connect();
  }

  get pace() {
    return this.hasSound && this.sound ? WITH_SOUND : SILENT;
  }

  /** Something was appended: stay with the newest frame. */
  follow() {
    const { feed, video } = this;
    if (!feed || feed.end === 0 || this.frozen) return;
    if (!this.started) {
      // The current group of pictures comes in one burst; its last picture is the one to begin with.
      if (feed.queue.length > 0) return;
      this.started = true;
      this.jump();
      this.retry = FIRST_RETRY_MS;
      this.become({ kind: "playing" });
    }
    const slack = Math.min(...this.slack.map(({ left }) => left));
    if (Number.isFinite(slack)) this.keepUp(slack);
    if (video.paused) video.play().catch(() => undefined);
    feed.forget(15);
  }

  /** @param {number} slack seconds */
  keepUp(slack) {
    const { video } = this;
    const { enough, tooMuch, farBehind } = this.pace;
    if (slack > farBehind || slack < -0.5) return this.jump();
    if (STEADY_SPEED) return;
    const hurrying = video.playbackRate > 1;
    const speed = slack > (hurrying ? enough : tooMuch) ? Math.min(FASTEST, 1 + (slack - enough / 2) / 2) : 1;
    // Each change of speed costs the browser a little: small ones are not worth it.
    if (Math.abs(video.playbackRate - speed) > 0.02 || (speed === 1 && hurrying)) video.playbackRate = speed;
  }

  /** To the newest picture. */
  jump() {
    const { feed, video } = this;
    if (!feed || feed.end === 0) return;
    const buffered = feed.buffered;
    video.currentTime = Math.max(buffered.start(buffered.length - 1), feed.end - this.pace.enough);
    video.playbackRate = 1;
    this.slack = [];
  }

  watch() {
    if (document.hidden || this.frozen) return;
    if (this.socket && this.state.kind === "playing" && performance.now() - this.lastMessage > SILENCE_MS) {
      this.become({ kind: "connecting", reason: "The stream went silent; trying again." });
      this.disconnect();
      this.again();
    }
    // A browser may have paused us behind our back.
    if (this.started && this.video.paused) this.video.play().catch(() => undefined);
  }

  visibility() {
    clearTimeout(this.hiding);
    if (this.frozen) return;
    if (document.hidden) {
      this.hiding = setTimeout(() => this.disconnect(), HIDDEN_MS);
    } else if (this.socket) {
      this.jump();
    } else if (!this.closed && this.state.kind !== "unsupported") {
      this.retry = FIRST_RETRY_MS;
      clearTimeout(this.timer);
      this.timer = undefined;
      this.connect();
    }
  }

  /** Stands still on the picture that is shown now, and receives nothing more. */
  freeze() {
    this.frozen = true;
    this.disconnect();
    this.video.pause();
  }

  /** @returns {LiveStats} */
  get stats() {
    const span = 3;
    const sum = this.arrived.reduce((total, item) => ({ bytes: total.bytes + item.bytes, frames: total.frames + item.frames }), { bytes: 0, frames: 0 });
    const latency = this.latencies.toSorted((a, b) => a - b).at(this.latencies.length >> 1);
    return {
      // Clocks that differ by more than a minute say nothing about a latency.
      latencyMs: latency !== undefined && Math.abs(latency) < 60000 ? latency : undefined,
      bitrateBps: (sum.bytes * 8) / span,
      fps: sum.frames / span,
      width: this.video.videoWidth,
      height: this.video.videoHeight,
      skipped: this.skipped,
      behindMs: this.feed ? Math.max(0, this.feed.end - this.video.currentTime) * 1000 : 0,
    };
  }

  /** What is on the screen, in milliseconds since 1970. */
  get moment() {
    return this.feed?.moment;
  }

  /** @param {LiveState} state */
  become(state) {
    this.state = state;
    this.changed(state);
  }

  endFeed() {
    this.feed?.close();
    this.feed = null;
    this.started = false;
  }

  disconnect() {
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  close() {
    this.closed = true;
    clearInterval(this.watchdog);
    clearTimeout(this.timer);
    clearTimeout(this.hiding);
    document.removeEventListener("visibilitychange", this.onVisibility);
    this.video.removeEventListener("resize", this.resized);
    this.disconnect();
    this.endFeed();
    this.video.playbackRate = 1;
  }
}
