// A registered device: where it stands on the way from a label to a picture, and what to do next.

import { call, words } from "./api.js";
import { movingWords, moveDevice, releaseLeft, rename, showPassword, targets, transfer, undoMove, unregister } from "./device-dialogs.js";
import { addHardware, badge, correctRegistration } from "./dialogs.js";
import { h, icon, menu, morph, toast } from "./dom.js";
import { bytes, full, plural, sentence, sinceThen } from "./format.js";
import { cameraMark, stepNumber, STEPS, stepTitle, whatNext } from "./steps.js";
import { store } from "./store.js";
import { markOf } from "./tree.js";

/** @typedef {import("./types.js").Device} Device */
/** @typedef {import("./types.js").SimulatedCamera} SimulatedCamera */

export class DevicePage {
  /** @param {HTMLElement} into @param {string} serial @param {import("./types.js").Whoami} me */
  constructor(into, serial, me) {
    this.into = into;
    this.serial = serial;
    this.title = serial;
    this.simulated = false;
    /** Figures of now; those of the event stream are of the device's last change. @type {Device | null} */
    this.figures = null;
    // "Connected for 3 min" grows by itself.
    this.clock = setInterval(() => this.refresh(), 5000);
    this.refresh();
    if (me.simulated_cameras) {
      call("GET", "/api/v1/simulated-cameras").then((/** @type {SimulatedCamera[]} */ labels) => {
        this.simulated = labels.some((label) => label.serial === serial);
        this.draw();
      }, () => undefined);
    }
  }

  end() {
    clearInterval(this.clock);
  }

  async refresh() {
    try {
      if (store.device(this.serial)?.connected && !document.hidden) this.figures = await call("GET", `/api/v1/devices/${this.serial}`);
    } catch {
      // The banner says that the server is away; a device that is gone is told by the event stream.
      this.figures = null;
    }
    this.draw();
  }

  draw() {
    const device = store.device(this.serial);
    morph(this.into, device ? this.view(device) : missing(`Device ${this.serial}`, "It is not registered at any tunnel server, or was just unregistered."));
  }

  /** @param {Device} device */
  view(device) {
    const next = whatNext(device);
    const hardware = device.hardware === undefined ? undefined : store.hardwareById(device.hardware);
    const cameras = hardware ? store.camerasOf(hardware.id) : [];
    const refused = device.problem !== undefined && device.relay === "refused";
    const figures = device.connected ? this.figures : null;
    // While it moves it is registered at two tunnel servers; the move is told by the one that it leaves.
    const from = store.registrations(device.serial).find((known) => known.moving) ?? device;
    const moving = from.moving;
    return h(
      "div",
      { class: "page", "data-testid": "device-page", "data-key": `device-${device.serial}` },
      h(
        "div",
        { class: "page-head" },
        h(
          "div",
          { class: "page-title" },
          crumbs([["#/services", "Remote connect services"], [`#/tunnel/${encodeURIComponent(device.tunnel_server)}`, device.tunnel_server]]),
          h("h1", {}, device.name || device.serial, h("span", { "data-testid": "device-state" }, badge(device))),
        ),
        h(
          "div",
          { class: "actions" },
          h("button", { class: "button", type: "button", onclick: () => rename(device) }, icon("edit"), "Rename"),
          menu("More", "device-more", [
            targets(device).length > 0 && !moving && ["tunnel", "Move to another server…", "move", () => moveDevice(device)],
            moving && ["refresh", moving.state === "moved" ? "Bring it back…" : "Undo the move…", "undo-move", () => undoMove(from, movingWords(moving).to)],
            ["user", "Give to another owner…", "transfer", () => transfer(device)],
            ["eye", "Show the password…", "show-password", () => showPassword(device)],
            ["trash", "Unregister…", "unregister", () => unregister(device), "danger"],
          ]),
        ),
      ),
      device.contested &&
        h(
          "div",
          { class: "notice warn", "data-key": "contested", "data-testid": "device-contested" },
          icon("alert"),
          h(
            "div",
            { class: "notice-body" },
            h("h2", {}, "Somebody else has tried to register this device"),
            h("p", {}, `${plural(device.contested.attempts, "time")}, last on ${full(device.contested.last)}. It is yours, and they were refused. Where that was a mistake of yours or theirs, compare the labels; where it is theirs now, give it to them.`),
          ),
        ),
      moving &&
        h(
          "div",
          { class: `notice ${moving.problem ? "warn" : "next"}`, "data-key": "moving", "data-testid": "device-moving" },
          icon("tunnel"),
          h(
            "div",
            { class: "notice-body" },
            h("h2", {}, moving.state === "moved" ? `Moved here from ${from.tunnel_server}` : movingWords(moving).title),
            h("p", {}, moving.state === "moved" ? `${from.tunnel_server} keeps the registration until the move is finished, so that it can be undone.` : movingWords(moving).text),
            h(
              "div",
              { class: "actions" },
              moving.state === "moved" && device !== from && h("button", { class: "button small primary", type: "button", "data-testid": "finish-move", onclick: () => releaseLeft(from) }, "Finish the move"),
              h("button", { class: "button small", type: "button", onclick: () => undoMove(from, movingWords(moving).to) }, moving.state === "moved" ? "Bring it back" : "Undo"),
            ),
          ),
        ),
      device.problem &&
        h(
          "div",
          { class: "notice bad", "data-key": "problem", "data-testid": "device-problem" },
          icon("alert"),
          h(
            "div",
            { class: "notice-body" },
            h("h2", {}, device.problem.step ? `Step ${stepNumber(device.problem.step)}, ${stepTitle(device.problem.step).toLowerCase()}, did not work` : "Something is wrong"),
            h("p", {}, sentence(device.problem.message)),
            h("p", { class: "muted mono" }, device.problem.code),
            refused && h("p", {}, next.text),
            refused && h("div", { class: "actions" }, h("button", { class: "button small primary", type: "button", "data-testid": "correct-refused", onclick: () => correctRegistration(device) }, "Correct the registration")),
          ),
        ),
      !refused &&
        h(
          "div",
          { class: `notice ${device.hardware !== undefined && device.connected ? "good" : "next"}`, "data-key": "next" },
          icon(device.hardware !== undefined && device.connected ? "check" : "info"),
          h(
            "div",
            { class: "notice-body" },
            h("h2", {}, next.title),
            h("p", {}, next.text),
            !device.connected && this.simulated && h("div", { class: "actions" }, h("button", { class: "button small", type: "button", "data-testid": "press", onclick: () => press(device.serial) }, icon("press"), "Press its button")),
            device.connected && device.hardware === undefined && h("div", { class: "actions" }, h("button", { class: "button small primary", type: "button", "data-testid": "add-this", onclick: () => addHardware([device.serial]) }, icon("plus"), "Add to recording server")),
          ),
        ),
      h(
        "section",
        { class: "card", "aria-label": "Steps" },
        h("div", { class: "card-head" }, h("h2", {}, "From the label to the picture"), h("span", { class: "muted num", "data-testid": "device-step" }, `Step ${device.step_number} of 8: ${stepTitle(device.step)}`)),
        stepper(device),
      ),
      h(
        "div",
        { class: "cards" },
        h(
          "section",
          { class: "card" },
          h("div", { class: "card-head" }, h("h2", {}, "Connection")),
          h(
            "dl",
            { class: "facts card-body num" },
            device.since ? fact(device.connected ? "Connected for" : "Away for", h("span", { title: full(device.since) }, sinceThen(device.since))) : fact("Connected", "Never yet"),
            device.connected && fact("Calls from", device.peer ? h("span", { class: "mono" }, device.peer) : "–"),
            device.connected && fact("Round trip", figures?.rtt_ms === undefined ? "–" : figures.rtt_ms < 1 ? "under 1 ms" : `${figures.rtt_ms} ms`),
            device.connected && fact("Received", figures ? bytes(figures.bytes_in) : "–"),
            device.connected && fact("Sent", figures ? bytes(figures.bytes_out) : "–"),
            fact("At the dispatcher", { pending: "Not relayed yet", waiting: "Waiting for the device", dispatching: "Being dispatched", dispatched: "Dispatched", refused: "Refused" }[device.relay] ?? device.relay),
          ),
        ),
        h(
          "section",
          { class: "card" },
          h("div", { class: "card-head" }, h("h2", {}, "Registration"), h("button", { class: "button small", type: "button", "data-testid": "correct", onclick: () => correctRegistration(device) }, icon("key"), "Correct")),
          h(
            "dl",
            { class: "facts card-body" },
            fact("Serial number", h("span", { class: "mono" }, device.serial)),
            fact("Tunnel server", h("a", { href: `#/tunnel/${encodeURIComponent(device.tunnel_server)}` }, device.tunnel_server)),
            fact("Device's user", device.user),
            device.own_password && fact("Its password", "Its own, in place of the factory default"),
            fact("Description", device.description || "–"),
            fact("Hardware", hardware ? h("a", { href: `#/hardware/${hardware.id}` }, hardware.name) : "Not added"),
          ),
        ),
        cameras.length > 0 &&
          h(
            "section",
            { class: "card" },
            h("div", { class: "card-head" }, h("h2", {}, "Cameras")),
            h("div", {}, cameras.map((camera) => h("a", { class: "pick row-link", href: `#/camera/${camera.id}`, "data-key": String(camera.id) }, icon("camera"), h("span", { class: "pick-text" }, h("b", {}, camera.name), h("small", {}, cameraMark(camera).word)), markOf(cameraMark(camera))))),
          ),
      ),
    );
  }
}

/** @param {Device} device */
function stepper(device) {
  const failed = device.problem?.step ? stepNumber(device.problem.step) : 0;
  return h(
    "ol",
    { class: "steps" },
    STEPS.map((step, index) => {
      const number = index + 1;
      const state = number === failed ? "failed" : number <= device.step_number ? "done" : number === device.step_number + 1 ? "now" : "open";
      const spoken = { failed: "did not work", done: "done", now: "next", open: "later" }[state];
      return h(
        "li",
        { class: `step ${state}`, title: step.done, "aria-current": state === "now" ? "step" : null },
        h("span", { class: "step-number", "aria-hidden": "true" }, state === "done" ? icon("check") : state === "failed" ? icon("x") : number),
        h("b", {}, step.title, h("span", { class: "sr" }, `: ${spoken}`)),
        h("span", { class: "step-who" }, step.who),
      );
    }),
  );
}

/** @param {string} name @param {import("./dom.js").Child} value */
export function fact(name, value) {
  return [h("dt", {}, name), h("dd", {}, value)];
}

/** @param {[string, string][]} places */
export function crumbs(places) {
  return h("ul", { class: "crumbs", "aria-label": "Above" }, places.map(([href, name]) => h("li", {}, h("a", { href }, name))));
}

/** @param {string} what @param {string} why */
export function missing(what, why) {
  if (!store.ready) return h("div", { class: "page", "data-key": "loading" }, h("div", { class: "empty" }, h("span", { class: "spinner" }), h("p", {}, "Loading…")));
  return h("div", { class: "page", "data-key": "missing" }, h("div", { class: "card empty" }, icon("info"), h("h2", {}, `${what} is not here`), h("p", {}, why), h("div", { class: "actions" }, h("a", { class: "button", href: "#/" }, "All cameras"))));
}

/** @param {string} serial */
export async function press(serial) {
  try {
    await call("POST", `/api/v1/simulated-cameras/${serial}/press`);
    toast("Pressed. The camera phones home now.", "good");
  } catch (error) {
    toast(words(error), "bad");
  }
}
