// Bandwidth and storage of an installation that is only planned. The server reckons, by what `homing plan` does.

import { call, words } from "./api.js";
import { field } from "./dialog.js";
import { h, icon, morph } from "./dom.js";
import { bitrate, bytes } from "./format.js";

/** @typedef {import("./types.js").Plan} Plan */
/** @typedef {ReturnType<typeof field>} Field */

/** What somebody types is asked about after so long without another key. */
const PAUSE_MS = 200;

const RESOLUTIONS = ["640x360", "1280x720", "1920x1080", "2560x1440", "3840x2160"];

export class PlanPage {
  /** @param {HTMLElement} into */
  constructor(into) {
    this.title = "Bandwidth";
    /** @type {Plan | null} */
    this.plan = null;
    this.problem = "";
    this.asked = 0;
    this.estimates = false;
    /** @type {number | undefined} */
    this.timer = undefined;
    const number = (/** @type {string} */ label, /** @type {string} */ name, /** @type {number} */ value, /** @type {Record<string, any>} */ input = {}, hint = "") =>
      field({ label, name, hint, input: { type: "number", inputmode: "numeric", min: 1, value, "data-testid": `plan-${name}`, ...input } });
    const choice = (/** @type {string} */ label, /** @type {string} */ name, /** @type {[string, string][]} */ choices, hint = "") =>
      field({ label, name, hint, control: h("select", { "data-testid": `plan-${name}` }, choices.map(([value, text]) => h("option", { value }, text))) });
    this.fields = {
      sites: number("Sites", "sites", 50),
      cameras: number("Cameras at each", "cameras", 4),
      kbit: number("Video of one camera, kbit/s", "kbit", 500, {}, "As its encoder is set."),
      resolution: choice("Resolution", "resolution", RESOLUTIONS.map((size) => [size, size.replace("x", " × ")])),
      codec: choice("Encoding", "codec", [["h264", "H.264"], ["h265", "H.265"], ["mjpeg", "Motion JPEG"]], "The recording server records H.264; the others go through the tunnel to other recorders."),
      scene: choice("Scene", "scene", [["quiet", "Quiet: a store room"], ["normal", "Normal: a shop, a yard"], ["busy", "Busy: a street, rain, noise at night"]]),
      fps: number("Pictures a second", "fps", 8, { min: 0.1, step: "any", inputmode: "decimal" }),
      audio_kbit: number("Sound of one camera, kbit/s", "audio_kbit", 0, { min: 0 }, "64 for G.711, 0 for none."),
      days: number("Days that recordings are kept", "days", 30),
    };
    this.fields.resolution.element.value = "1920x1080";
    this.fields.scene.element.value = "normal";
    for (const { element } of Object.values(this.fields)) element.addEventListener("input", () => this.changed());
    this.modes = h("div", { class: "segmented", role: "group", "aria-label": "Bitrate of a camera" });
    this.result = h("div", { class: "plan-result", "aria-live": "polite", "data-testid": "plan-result" });
    into.replaceChildren(
      h(
        "div",
        { class: "page", "data-testid": "plan-page" },
        h("div", { class: "page-head" }, h("div", { class: "page-title" }, h("h1", {}, "Bandwidth and storage"))),
        h(
          "section",
          { class: "card" },
          h("div", { class: "card-head wrap" }, h("h2", {}, "What is planned"), this.modes),
          h("div", { class: "card-body plan-fields" }, Object.values(this.fields).map(({ box }) => box)),
        ),
        this.result,
      ),
    );
    this.ask();
  }

  end() {
    clearTimeout(this.timer);
  }

  changed() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), PAUSE_MS);
  }

  query() {
    const { resolution, kbit, ...rest } = this.fields;
    const query = new URLSearchParams(Object.entries(rest).map(([name, { value }]) => [name, value]));
    if (this.estimates) {
      const [width, height] = resolution.value.split("x");
      query.set("width", width);
      query.set("height", height);
    } else {
      query.set("kbit", kbit.value);
    }
    return query;
  }

  async ask() {
    this.asked += 1;
    const asked = this.asked;
    try {
      const plan = await call("GET", `/api/v1/plan?${this.query()}`);
      if (asked !== this.asked) return;
      this.plan = plan;
      this.problem = "";
    } catch (error) {
      if (asked !== this.asked) return;
      this.problem = words(error);
    }
    this.draw();
  }

  draw() {
    const mode = (/** @type {boolean} */ estimates, /** @type {string} */ text) =>
      h("button", { type: "button", "aria-pressed": String(this.estimates === estimates), "data-testid": estimates ? "plan-estimate" : "plan-known", onclick: () => { this.estimates = estimates; this.ask(); } }, text);
    morph(this.modes, mode(false, "Bitrate is known"), mode(true, "Estimate it"));
    const { kbit, resolution, codec, scene } = this.fields;
    kbit.box.hidden = this.estimates;
    for (const one of [resolution, codec, scene]) one.box.hidden = !this.estimates;
    morph(this.result, this.problem ? h("div", { class: "notice bad", role: "alert" }, icon("alert"), h("span", {}, this.problem)) : this.plan && figures(this.plan));
  }
}

/** @param {Plan} plan */
function figures({ wish, camera, site, centre, storage }) {
  const line = (/** @type {string} */ key, /** @type {string} */ title, /** @type {string} */ needed, /** @type {string} */ way, /** @type {import("./types.js").Line} */ { order_bps, upstream_bps, downstream_bps }) =>
    h(
      "section",
      { class: "card plan-figure", "data-key": key, "data-testid": `plan-${key}` },
      h("h2", {}, title),
      h("p", { class: "plan-number num" }, needed),
      h("p", { class: "muted" }, way),
      h("dl", { class: "facts" }, h("dt", {}, "Line to order"), h("dd", { class: "num" }, h("b", {}, bitrate(order_bps))), h("dt", {}, "Other direction"), h("dd", { class: "num" }, bitrate(Math.min(upstream_bps, downstream_bps)))),
    );
  return [
    camera.estimate && h("div", { class: "notice", "data-key": "estimate" }, icon("info"), h("span", {}, `${bitrate(camera.video_bps)} a camera is an estimate: ${bitrate(camera.estimate.low_bps)} to ${bitrate(camera.estimate.high_bps)} must be expected, by scene, light and encoder. Measure one camera of the kind, then enter its bitrate.`)),
    h(
      "div",
      { class: "plan-figures", "data-key": "figures" },
      line("site", "Each site", bitrate(site.upstream_bps), "upstream", site),
      line("centre", "The centre", bitrate(centre.downstream_bps), "downstream", centre),
      h(
        "section",
        { class: "card plan-figure", "data-key": "storage", "data-testid": "plan-storage" },
        h("h2", {}, "Recordings"),
        h("p", { class: "plan-number num" }, bytes(storage.total_bytes)),
        h("p", { class: "muted" }, `in ${wish.days} days`),
        h("dl", { class: "facts" }, h("dt", {}, "All cameras, a day"), h("dd", { class: "num" }, bytes(storage.per_day_bytes)), h("dt", {}, "One camera, a day"), h("dd", { class: "num" }, bytes(storage.per_camera_day_bytes))),
      ),
    ),
    h("p", { class: "field-hint", "data-key": "hint" }, `One camera takes ${bitrate(camera.wire_bps)} of the line: ${camera.overhead_percent} % above its video and sound, for RTP, TLS and TCP/IP. A fifth of the line to order stays free, for key frames that come together and for catching up. On the command line: homing plan.`),
  ];
}
