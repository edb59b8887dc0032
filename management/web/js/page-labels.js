// Labels of simulated cameras: what one would read off the box, and a finger for the button.

import { call, words } from "./api.js";
import { badge, registerDevice } from "./dialogs.js";
import { h, icon, morph, toast } from "./dom.js";
import { press } from "./page-device.js";
import { store } from "./store.js";

/** @typedef {import("./types.js").SimulatedCamera} SimulatedCamera */

export class LabelsPage {
  /** @param {HTMLElement} into */
  constructor(into) {
    this.into = into;
    this.title = "Simulated cameras";
    /** @type {SimulatedCamera[]} */
    this.labels = [];
    call("GET", "/api/v1/simulated-cameras").then(
      (labels) => {
        this.labels = labels;
        this.draw();
      },
      (error) => toast(words(error), "bad"),
    );
  }

  draw() {
    morph(
      this.into,
      h(
        "div",
        { class: "page", "data-testid": "labels-page", "data-key": "labels" },
        h("div", { class: "page-head" }, h("div", { class: "page-title" }, h("h1", {}, "Simulated cameras"))),
        h("p", { class: "lead" }, "Each of these runs on this machine and behaves like a camera fresh from its box: it has a label, a one-click button, and connects to nobody before the button was pressed."),
        h("div", { class: "labels" }, this.labels.map((label) => this.label(label))),
      ),
    );
  }

  /** @param {SimulatedCamera} label */
  label(label) {
    const device = store.device(label.serial);
    return h(
      "article",
      { class: "label", "data-key": label.serial, "data-testid": `label-${label.serial}`, "aria-label": label.name },
      h(
        "div",
        { class: "sticker" },
        h("div", { class: "sticker-head" }, h("b", {}, label.name), h("small", {}, "Network camera")),
        h("img", { class: "sticker-code", src: `/api/v1/simulated-cameras/${label.serial}/label.svg`, width: 88, height: 88, alt: "QR code: serial number and OAK" }),
        h(
          "dl",
          {},
          h("dt", {}, "S/N"),
          h("dd", { "data-testid": "label-serial" }, label.serial),
          h("dt", {}, "OAK"),
          h("dd", { "data-testid": "label-oak" }, label.oak),
          label.user && h("dt", {}, "LOG-IN"),
          label.user && h("dd", { class: "minor" }, `${label.user} / ${label.password}`),
        ),
      ),
      h(
        "div",
        { class: "label-foot" },
        h("span", { class: "label-state" }, device ? badge(device) : h("span", { class: "badge" }, h("span", { class: "mark mark-none", "aria-hidden": "true" }), "Not registered")),
        device
          ? h("a", { class: "button small", href: `#/device/${label.serial}` }, "Open")
          : h("button", { class: "button small", type: "button", "data-testid": "register-label", onclick: () => registerDevice(label) }, "Register"),
        h("button", { class: "button small", type: "button", "data-testid": "press", onclick: () => press(label.serial) }, icon("press"), "Press button"),
      ),
    );
  }
}
