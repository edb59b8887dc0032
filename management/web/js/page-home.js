// All cameras, live; or, before there is one, how to get one.

import { addHardware, registerDevice } from "./dialogs.js";
import { h, icon, morph } from "./dom.js";
import { plural } from "./format.js";
import { LivePlayer } from "./live.js";
import { cameraMark } from "./steps.js";
import { store } from "./store.js";
import { markOf } from "./tree.js";

/** @typedef {import("./types.js").Camera} Camera */

const SIZES = /** @type {const} */ ([["fit", "Fit"], ["small", "Small"], ["large", "Large"]]);

export class HomePage {
  /** @param {HTMLElement} into @param {import("./types.js").Whoami} me */
  constructor(into, me) {
    this.into = into;
    this.me = me;
    this.title = "Cameras";
    this.size = localStorage.getItem("homing-tile") ?? "fit";
    /** @type {Map<number, LivePlayer>} */
    this.players = new Map();
    // Only what can be seen is streamed.
    this.observer = new IntersectionObserver((entries) => entries.forEach((entry) => this.seen(entry)), { root: into, rootMargin: "120px" });
  }

  end() {
    this.observer.disconnect();
    this.players.forEach((player) => player.close());
  }

  draw() {
    const cameras = store.cameras;
    if (cameras.length === 0) {
      this.players.forEach((player) => player.close());
      this.players.clear();
      morph(this.into, store.ready ? this.firstSteps() : h("div", { class: "page", "data-key": "loading" }, h("div", { class: "empty" }, h("span", { class: "spinner" }), h("p", {}, "Loading…"))));
      return;
    }
    morph(
      this.into,
      h(
        "div",
        { class: "page full", "data-key": "grid", "data-testid": "camera-grid" },
        h(
          "div",
          { class: "page-head" },
          h("div", { class: "page-title" }, h("h1", {}, "All cameras", h("span", { class: "badge num" }, plural(cameras.length, "camera")))),
          h(
            "div",
            { class: "segmented", role: "group", "aria-label": "Size of the pictures" },
            SIZES.map(([size, name]) =>
              h("button", { type: "button", "aria-pressed": String(this.size === size), onclick: () => { this.size = size; localStorage.setItem("homing-tile", size); this.draw(); } }, name),
            ),
          ),
        ),
        h("div", { class: "grid", "data-size": this.size, "data-columns": Math.min(5, Math.ceil(Math.sqrt(cameras.length))) }, cameras.map((camera) => this.tile(camera))),
      ),
    );
    for (const tile of this.into.querySelectorAll(".tile")) this.observer.observe(tile);
    for (const [id, player] of this.players) {
      if (store.camera(id)) continue;
      player.close();
      this.players.delete(id);
    }
  }

  /** @param {Camera} camera */
  tile(camera) {
    const mark = cameraMark(camera);
    return h(
      "a",
      { class: "tile", href: `#/camera/${camera.id}`, "data-key": String(camera.id), "data-testid": `tile-${camera.id}`, "aria-label": `${camera.name}, ${mark.word}` },
      h("div", { class: "tile-picture", "data-keep": true, "data-key": "picture" }, h("video", { muted: true, playsinline: true, tabindex: -1 }), h("div", { class: "over" }, h("span", { class: "spinner" }))),
      h("div", { class: "tile-foot" }, markOf(mark), h("span", {}, camera.name), h("small", {}, mark.word)),
    );
  }

  /** @param {IntersectionObserverEntry} entry */
  seen(entry) {
    const tile = /** @type {HTMLElement} */ (entry.target);
    const id = Number(tile.dataset.key);
    const player = this.players.get(id);
    if (!entry.isIntersecting) {
      player?.close();
      this.players.delete(id);
      return;
    }
    const video = tile.querySelector("video");
    const over = tile.querySelector(".over");
    if (player || !video || !over) return;
    video.muted = true;
    this.players.set(
      id,
      new LivePlayer(video, id, (state) => {
        /** @type {HTMLElement} */ (over).hidden = state.kind === "playing";
        over.classList.toggle("dim", state.kind !== "connecting");
        if (state.kind === "connecting") over.replaceChildren(h("span", { class: "spinner" }));
        else over.replaceChildren(icon(state.kind === "unsupported" ? "alert" : "camera"), h("span", {}, state.reason ?? ""));
      }),
    );
  }

  firstSteps() {
    const devices = store.devices;
    const waiting = devices.filter((device) => !device.connected).length;
    const ready = devices.filter((device) => device.connected && device.hardware === undefined).length;
    const step = (/** @type {string} */ symbol, /** @type {string} */ title, /** @type {string} */ text, /** @type {import("./dom.js").Child} */ action) =>
      h("section", { class: "card first-step" }, icon(symbol), h("h2", {}, title), h("p", {}, text), action);
    return h(
      "div",
      { class: "page", "data-key": "first", "data-testid": "first-steps" },
      h("div", { class: "page-head" }, h("div", { class: "page-title" }, h("h1", {}, "No cameras yet"))),
      h("p", { class: "lead" }, "Three things bring a camera here from anywhere with Internet access. Nothing has to be set up in its network."),
      h(
        "div",
        { class: "first-steps" },
        step("label", "1. Register it", "Type the serial number and the OAK from the label. A mistake is told at once.", h("button", { class: `button ${devices.length === 0 ? "primary" : ""}`, type: "button", onclick: () => registerDevice() }, "Register device")),
        step(
          "press",
          "2. Press its button",
          waiting > 0 ? `${plural(waiting, "registered device is", "registered devices are")} not connected yet. Plug in, press the one-click button, done.` : "Whoever is at the place plugs the camera in and presses its one-click button.",
          this.me.simulated_cameras ? h("a", { class: `button ${waiting > 0 && ready === 0 ? "primary" : ""}`, href: "#/labels" }, "Simulated cameras") : h("span", { class: "muted" }, "It appears on the left by itself."),
        ),
        step(
          "camera",
          "3. Add it",
          ready > 0 ? `${plural(ready, "device is", "devices are")} ready. Add ${ready === 1 ? "it" : "them"} to be recorded and watched.` : "Once it is connected, add it to the recording server.",
          h("button", { class: `button ${ready > 0 ? "primary" : ""}`, type: "button", onclick: () => addHardware() }, "Add hardware"),
        ),
      ),
    );
  }
}
