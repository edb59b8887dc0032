// The timeline: what was recorded, and what not and why, from minutes to weeks, on a canvas.
//
// Drag pans, wheel and pinch zoom around the pointer, a click goes there. With the keyboard it is a
// slider: arrows move the playhead, plus and minus zoom, End goes to live.

import { call } from "./api.js";
import { h, icon } from "./dom.js";
import { day, duration, full, sentence, time } from "./format.js";

/** @typedef {{start: number, end: number}} Range milliseconds since 1970 */
/** @typedef {Range & {code: string, message: string}} Gap */

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

const SHORTEST = 30_000;
const LONGEST = 62 * DAY;

/** Distances between ticks that people find round. */
const STEPS = [1000, 5000, 10_000, 30_000, MINUTE, 5 * MINUTE, 10 * MINUTE, 30 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY];

/** What was recorded grows: asked for anew this often while the present is in view. */
const REFRESH_MS = 4000;

/** Between the last secured second and the present nothing is missing, it is on its way to the disk. */
const UNSECURED_MS = 15_000;

/** A click may tremble by so many pixels. */
const TREMBLE = 5;

export class Timeline {
  /**
   * @param {number} camera
   * @param {object} events
   * @param {(moment: number) => void} events.seek
   * @param {() => void} events.live
   * @param {(gaps: Gap[]) => void} events.gaps what is known of gaps has changed
   */
  constructor(camera, events) {
    this.camera = camera;
    this.events = events;
    /** @type {Range[]} */
    this.ranges = [];
    /** @type {Gap[]} */
    this.gaps = [];
    /** What has been loaded. @type {Range | null} */
    this.known = null;
    this.end = Date.now() + 10 * MINUTE * 0.06;
    this.span = 10 * MINUTE;
    this.playhead = Date.now();
    this.live = true;
    /** The present stays in view until the user looks elsewhere. */
    this.following = true;
    /** @type {number | null} */
    this.hover = null;
    /** @type {Map<number, {x: number, y: number}>} */
    this.pointers = new Map();

    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.tip = h("div", { class: "timeline-tip", hidden: true });
    this.scale = h(
      "div",
      {
        class: "timeline-scale",
        role: "slider",
        tabindex: 0,
        "data-testid": "timeline",
        "aria-label": "Recording. Arrows move by ten seconds, with Shift by a minute; Page keys by ten minutes; plus and minus zoom; End goes to live",
        "aria-orientation": "horizontal",
      },
      this.canvas,
      this.tip,
    );
    this.label = h("span", { class: "range" });
    const button = (/** @type {string} */ symbol, /** @type {string} */ name, /** @type {() => void} */ act) =>
      h("button", { class: "icon-button", type: "button", "aria-label": name, title: name, onclick: act }, icon(symbol));
    const preset = (/** @type {string} */ name, /** @type {number} */ span) => h("button", { class: "quiet-button", type: "button", onclick: () => this.show(span) }, name);
    this.element = h(
      "section",
      { class: "timeline", "aria-label": "Timeline" },
      h(
        "div",
        { class: "timeline-head" },
        this.label,
        h("span", { class: "gap" }),
        preset("10 min", 10 * MINUTE),
        preset("1 h", HOUR),
        preset("24 h", DAY),
        preset("7 d", 7 * DAY),
        button("zoom-out", "Zoom out", () => this.zoom(2, this.center)),
        button("zoom-in", "Zoom in", () => this.zoom(0.5, this.center)),
      ),
      this.scale,
    );
    this.listen();
    this.resize = new ResizeObserver(() => this.draw());
    this.resize.observe(this.scale);
    this.redraw = () => this.draw();
    addEventListener("homing-theme", this.redraw);
    this.clock = setInterval(() => this.tick(), 1000);
    this.load();
  }

  close() {
    clearInterval(this.clock);
    clearTimeout(this.loading);
    this.resize.disconnect();
    removeEventListener("homing-theme", this.redraw);
  }

  get start() {
    return this.end - this.span;
  }

  /** Zooming by button keeps the playhead where it is, if it is in view. */
  get center() {
    const inView = this.playhead >= this.start && this.playhead <= this.end;
    return inView ? this.playhead : this.end - this.span / 2;
  }

  /** @param {number} moment @param {boolean} live */
  setPlayhead(moment, live) {
    this.playhead = moment;
    this.live = live;
    if (!live && this.following && moment < this.start) this.following = false;
    // Playing on out of the view turns the page.
    if (!live && !this.pointers.size && moment > this.end) this.end = moment + this.span * 0.7;
    this.draw();
  }

  /** Brings a moment into view. @param {number} moment */
  reveal(moment) {
    if (moment >= this.start && moment <= this.end) return;
    this.following = false;
    this.end = Math.min(moment + this.span / 2, Date.now() + this.span * 0.06);
    this.changed();
  }

  /** @param {number} span */
  show(span) {
    const center = this.center;
    this.span = span;
    if (this.live || Date.now() - center < span / 2) this.toPresent();
    else this.end = center + span / 2;
    this.changed();
  }

  toPresent() {
    this.following = true;
    this.end = Date.now() + this.span * 0.06;
  }

  /** @param {number} factor @param {number} around */
  zoom(factor, around) {
    const span = Math.min(LONGEST, Math.max(SHORTEST, this.span * factor));
    const share = (this.end - around) / this.span;
    this.span = span;
    this.end = around + span * share;
    this.settle();
    this.changed();
  }

  /** The future has nothing to show. */
  settle() {
    const latest = Date.now() + this.span * 0.06;
    if (this.end >= latest - this.span * 0.01) {
      this.end = latest;
      this.following = true;
    } else {
      this.following = false;
    }
  }

  tick() {
    if (this.following) this.end = Date.now() + this.span * 0.06;
    const now = performance.now();
    if (!document.hidden && this.end > Date.now() - REFRESH_MS && now - (this.loadedAt ?? 0) > REFRESH_MS) this.load();
    this.draw();
  }

  changed() {
    this.draw();
    clearTimeout(this.loading);
    const known = this.known;
    const outside = !known || this.start < known.start || Math.min(this.end, Date.now()) > known.end + REFRESH_MS * 2;
    if (outside) this.loading = setTimeout(() => this.load(), 120);
  }

  async load() {
    this.loadedAt = performance.now();
    const start = this.start - this.span;
    const end = Math.min(this.end + this.span, Date.now());
    if (end <= start) return;
    try {
      const answer = await call("GET", `/api/v1/cameras/${this.camera}/timeline?start=${(start / 1000).toFixed(3)}&end=${(end / 1000).toFixed(3)}`);
      const parsed = (/** @type {any} */ part) => ({ ...part, start: Date.parse(part.start), end: Date.parse(part.end) });
      this.ranges = answer.ranges.map(parsed);
      this.gaps = answer.gaps.map(parsed);
      this.known = { start, end };
      this.events.gaps(this.gaps);
      this.draw();
    } catch {
      // The picture says what is wrong with the camera; the next refresh tries again.
    }
  }

  // Drawing

  /** @param {number} moment */
  x(moment) {
    return ((moment - this.start) / this.span) * this.width;
  }

  /** @param {number} x */
  moment(x) {
    return this.start + (x / this.width) * this.span;
  }

  get width() {
    return this.scale.clientWidth || 1;
  }

  /** Tells the scale in words at once, draws it with the next frame. */
  draw() {
    this.scale.setAttribute("aria-valuemin", String(Math.round(this.start / 1000)));
    this.scale.setAttribute("aria-valuemax", String(Math.round(this.end / 1000)));
    this.scale.setAttribute("aria-valuenow", String(Math.round(this.playhead / 1000)));
    this.scale.setAttribute("aria-valuetext", this.live ? "Live" : full(this.playhead));
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.paint();
    });
  }

  paint() {
    const { canvas } = this;
    const width = this.width;
    const height = this.scale.clientHeight;
    if (!height) return;
    const ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d");
    if (!context) return;
    const style = getComputedStyle(document.documentElement);
    const colour = (/** @type {string} */ name) => style.getPropertyValue(`--${name}`).trim();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);

    const top = 26;
    const bottom = height - 6;
    const now = Date.now();
    context.fillStyle = colour("sunken");
    context.beginPath();
    context.roundRect(0, top, width, bottom - top, 5);
    context.fill();
    context.save();
    context.beginPath();
    context.roundRect(0, top, width, bottom - top, 5);
    context.clip();

    // The future.
    if (this.end > now) {
      context.fillStyle = colour("bg");
      context.fillRect(this.x(now), top, width, bottom - top);
    }
    context.fillStyle = colour("recorded");
    for (const range of this.ranges) {
      const from = this.x(range.start);
      // The last seconds are on their way to the disk.
      const fresh = now - range.end < UNSECURED_MS;
      const to = fresh ? this.x(now) : this.x(range.end);
      if (to < 0 || from > width) continue;
      context.fillRect(from, top + 7, Math.max(1, to - from), bottom - top - 14);
    }
    const hatch = hatching(context, colour("red-mark"));
    for (const gap of this.gaps) {
      const from = this.x(gap.start);
      const to = this.x(gap.end);
      if (to < 0 || from > width || gap.code === "expired") continue;
      const wide = Math.max(2, to - from);
      context.fillStyle = colour("red-soft");
      context.fillRect(from, top + 7, wide, bottom - top - 14);
      context.fillStyle = hatch ?? colour("red-mark");
      context.fillRect(from, top + 7, wide, bottom - top - 14);
      if (wide < 4) {
        context.fillStyle = colour("red-mark");
        context.fillRect(from, top + 7, wide, bottom - top - 14);
      }
    }
    context.restore();
    this.paintTicks(context, width, top, bottom, colour);

    if (this.end > now) {
      context.fillStyle = colour("text-3");
      context.fillRect(this.x(now) - 0.5, top, 1, bottom - top);
    }
    if (this.hover !== null && this.pointers.size === 0) {
      context.fillStyle = colour("text-2");
      context.fillRect(this.x(this.hover) - 0.5, top - 2, 1, bottom - top + 4);
    }
    const x = this.x(this.playhead);
    if (x > -8 && x < width + 8) {
      context.fillStyle = this.live ? colour("red-mark") : colour("text");
      context.fillRect(x - 1, top - 4, 2, bottom - top + 8);
      context.beginPath();
      context.moveTo(x - 6, top - 10);
      context.lineTo(x + 6, top - 10);
      context.lineTo(x, top - 2);
      context.fill();
    }
    this.label.textContent = `${day(this.start)} ${time(this.start)} – ${sameDay(this.start, this.end) ? "" : `${day(this.end)} `}${time(this.end)}`;
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {number} width
   * @param {number} top
   * @param {number} bottom
   * @param {(name: string) => string} colour
   */
  paintTicks(context, width, top, bottom, colour) {
    const room = 92;
    const step = STEPS.find((step) => (step / this.span) * width >= room) ?? 14 * DAY;
    const zone = new Date(this.start).getTimezoneOffset() * MINUTE;
    context.font = `11.5px ${getComputedStyle(document.body).fontFamily}`;
    context.textBaseline = "middle";
    context.textAlign = "center";
    for (let tick = Math.ceil((this.start - zone) / step) * step + zone; tick < this.end; tick += step) {
      const x = this.x(tick);
      context.fillStyle = colour("line-strong");
      context.globalAlpha = 0.7;
      context.fillRect(x - 0.5, top, 1, bottom - top);
      context.globalAlpha = 1;
      const midnight = new Date(tick).getHours() === 0 && new Date(tick).getMinutes() === 0 && step >= 5 * MINUTE;
      const text = midnight ? day(tick) : step < MINUTE ? time(tick) : time(tick).slice(0, 5);
      const half = context.measureText(text).width / 2;
      if (x - half < 0 || x + half > width) continue;
      context.fillStyle = midnight ? colour("text") : colour("text-2");
      context.fillText(text, x, 9);
    }
  }

  // Pointer and keyboard

  listen() {
    const { scale } = this;
    const at = (/** @type {{clientX: number}} */ event) => event.clientX - scale.getBoundingClientRect().left;
    /** @type {{x: number, moved: boolean} | null} */
    let press = null;
    scale.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      scale.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, { x: at(event), y: event.clientY });
      press = this.pointers.size === 1 ? { x: at(event), moved: false } : null;
    });
    scale.addEventListener("pointermove", (event) => {
      const before = this.pointers.get(event.pointerId);
      if (!before) return this.hovered(at(event));
      const now = { x: at(event), y: event.clientY };
      if (press && Math.abs(now.x - press.x) > TREMBLE) press.moved = true;
      if (this.pointers.size === 1 && press?.moved) {
        scale.classList.add("panning");
        this.end -= ((now.x - before.x) / this.width) * this.span;
        this.settle();
        this.changed();
      } else if (this.pointers.size === 2) {
        const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
        if (other) {
          const around = this.moment((now.x + other.x) / 2);
          const factor = Math.max(24, Math.abs(before.x - other.x)) / Math.max(24, Math.abs(now.x - other.x));
          this.zoom(factor, around);
        }
      }
      this.pointers.set(event.pointerId, now);
      this.tip.hidden = true;
    });
    const released = (/** @type {PointerEvent} */ event) => {
      if (!this.pointers.delete(event.pointerId)) return;
      scale.classList.remove("panning");
      if (event.type === "pointerup" && press && !press.moved && this.pointers.size === 0) this.go(this.moment(press.x));
      press = null;
    };
    scale.addEventListener("pointerup", released);
    scale.addEventListener("pointercancel", released);
    scale.addEventListener("pointerleave", () => {
      this.hover = null;
      this.tip.hidden = true;
      this.draw();
    });
    scale.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
          this.end += (event.deltaX / this.width) * this.span;
          this.settle();
          this.changed();
        } else {
          this.zoom(Math.exp(Math.max(-0.6, Math.min(0.6, event.deltaY / 300))), this.moment(at(event)));
        }
        this.hovered(at(event));
      },
      { passive: false },
    );
    scale.addEventListener("keydown", (event) => {
      const seconds = event.shiftKey ? 60 : 10;
      /** @type {Record<string, () => void>} */
      const keys = {
        ArrowLeft: () => this.go(this.playhead - seconds * 1000),
        ArrowRight: () => this.go(this.playhead + seconds * 1000),
        PageUp: () => this.go(this.playhead - 10 * MINUTE),
        PageDown: () => this.go(this.playhead + 10 * MINUTE),
        Home: () => this.go(this.ranges.find((range) => range.end > this.start)?.start ?? this.start),
        End: () => this.events.live(),
        "+": () => this.zoom(0.5, this.center),
        "=": () => this.zoom(0.5, this.center),
        "-": () => this.zoom(2, this.center),
      };
      const act = keys[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act();
      if (event.key.length > 1 && event.key !== "End") this.reveal(this.playhead);
    });
  }

  /** @param {number} moment */
  go(moment) {
    if (moment >= Date.now() - 1500) this.events.live();
    else this.events.seek(moment);
  }

  /** @param {number} x */
  hovered(x) {
    const moment = this.moment(x);
    this.hover = moment;
    const gap = this.gaps.find((gap) => moment >= gap.start && moment <= gap.end) ?? this.gaps.find((gap) => Math.abs(this.x((gap.start + gap.end) / 2) - x) < 4);
    this.tip.replaceChildren(`${day(moment)} ${time(moment)}`);
    if (gap) this.tip.append(h("small", {}, `No recording for ${duration(gap.end - gap.start)}. ${sentence(gap.message)}`));
    this.tip.hidden = false;
    const half = this.tip.offsetWidth / 2;
    this.tip.style.left = `${Math.max(0, Math.min(this.width - half * 2, x - half))}px`;
    this.draw();
  }
}

/** @param {CanvasRenderingContext2D} context @param {string} colour */
function hatching(context, colour) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 7;
  const inside = tile.getContext("2d");
  if (!inside) return null;
  inside.strokeStyle = colour;
  inside.lineWidth = 1.3;
  inside.globalAlpha = 0.75;
  inside.beginPath();
  for (const from of [-7, 0, 7]) {
    inside.moveTo(from, 7);
    inside.lineTo(from + 7, 0);
  }
  inside.stroke();
  return context.createPattern(tile, "repeat");
}

/** @param {number} one @param {number} other */
function sameDay(one, other) {
  return new Date(one).toDateString() === new Date(other).toDateString();
}
