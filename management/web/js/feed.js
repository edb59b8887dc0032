// One source buffer of a `<video>`, fed strictly in order: what live and playback have in common.
//
// Media time in the element is unix time minus `base`: numbers that a double (and a browser's timer)
// keeps exact. Invariant: at most one operation runs on the source buffer; the rest waits in a queue
// whose size is bounded.

import { beginning, timescales } from "./mp4.js";

/** Operations that may wait. A browser that cannot keep up with so many has failed. */
const QUEUE = 900;

export class Feed {
  /**
   * @param {HTMLVideoElement} video
   * @param {(problem: string) => void} failed the feed cannot go on; make a new one
   */
  constructor(video, failed) {
    this.video = video;
    this.failed = failed;
    /** Seconds since 1970 at media time 0. @type {number | undefined} */
    this.base = undefined;
    /** @type {((buffer: SourceBuffer) => void)[]} */
    this.queue = [];
    /** @type {SourceBuffer | null} */
    this.buffer = null;
    /** How the buffer is coded at first, and now. @type {string | undefined} */
    this.firstMime = undefined;
    /** @type {string | undefined} */
    this.mime = undefined;
    /** @type {Map<number, number>} */
    this.scales = new Map();
    this.closed = false;
    /** @type {() => void} */
    this.updated = () => undefined;
    // iPhones have the managed kind only.
    const Source = /** @type {typeof MediaSource} */ (/** @type {any} */ (window).ManagedMediaSource ?? window.MediaSource);
    this.source = new Source();
    video.disableRemotePlayback = true;
    this.url = URL.createObjectURL(this.source);
    video.src = this.url;
    this.source.addEventListener("sourceopen", () => this.run());
    video.onerror = () => this.fail(video.error?.message || "the browser cannot decode this video");
  }

  /** @param {string} mime */
  static plays(mime) {
    const Source = /** @type {any} */ (window).ManagedMediaSource ?? window.MediaSource;
    return Boolean(Source?.isTypeSupported(mime));
  }

  /** What follows is coded so. @param {ArrayBuffer} init @param {string} mime */
  begin(init, mime) {
    this.scales = timescales(init);
    this.push((buffer) => {
      if (this.mime !== mime) buffer.changeType(mime);
      this.mime = mime;
      buffer.appendBuffer(init);
    });
    this.firstMime ??= mime;
    this.run();
  }

  /** @param {ArrayBuffer} fragment */
  append(fragment) {
    if (this.base === undefined) {
      const first = beginning(fragment, this.scales);
      // Without a time there is nothing to show it at.
      if (first === undefined) return;
      this.base = Math.floor(first) - 1;
    }
    const base = this.base;
    this.push((buffer) => {
      if (buffer.timestampOffset !== -base) buffer.timestampOffset = -base;
      buffer.appendBuffer(fragment);
    });
  }

  /** Forgets what lies more than `seconds` behind the playhead. @param {number} seconds */
  forget(seconds) {
    const until = this.video.currentTime - seconds;
    if (this.buffered.length === 0 || this.buffered.start(0) > until - seconds) return;
    this.push((buffer) => buffer.remove(0, until));
  }

  /** @param {(buffer: SourceBuffer) => void} operation */
  push(operation) {
    if (this.closed) return;
    if (this.queue.length >= QUEUE) return this.fail("the browser takes the video too slowly");
    this.queue.push(operation);
    this.run();
  }

  run() {
    if (this.closed || this.source.readyState !== "open") return;
    try {
      if (!this.buffer) {
        if (!this.firstMime) return;
        this.mime = this.firstMime;
        this.buffer = this.source.addSourceBuffer(this.firstMime);
        this.buffer.mode = "segments";
        this.buffer.addEventListener("updateend", () => {
          this.updated();
          this.run();
        });
      }
      const buffer = this.buffer;
      while (!buffer.updating) {
        const operation = this.queue.shift();
        if (!operation) return;
        try {
          operation(buffer);
        } catch (error) {
          if (!(error instanceof DOMException) || error.name !== "QuotaExceededError") throw error;
          // The browser's memory for video is full: make room, then the same again.
          this.queue.unshift(operation);
          buffer.remove(0, Math.max(0.1, this.video.currentTime - 5));
        }
      }
    } catch (error) {
      this.fail(error instanceof Error ? error.message : String(error));
    }
  }

  /** @param {string} problem */
  fail(problem) {
    if (this.closed) return;
    this.close();
    this.failed(problem);
  }

  get buffered() {
    return this.buffer && this.source.readyState === "open" ? this.buffer.buffered : NOTHING;
  }

  /** Where the last buffered stretch ends; media time. */
  get end() {
    const buffered = this.buffered;
    return buffered.length === 0 ? 0 : buffered.end(buffered.length - 1);
  }

  /** What is on the screen, in milliseconds since 1970. */
  get moment() {
    return this.base === undefined ? undefined : (this.video.currentTime + this.base) * 1000;
  }

  close() {
    if (this.closed) return;
    this.closed = true;
    this.queue = [];
    this.video.onerror = null;
    URL.revokeObjectURL(this.url);
    if (this.video.src === this.url) {
      this.video.removeAttribute("src");
      this.video.load();
    }
  }
}

/** @type {TimeRanges} */
const NOTHING = { length: 0, start: () => 0, end: () => 0 };
