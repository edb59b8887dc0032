// A registered device: where it stands on the way from a label to a picture, and what to do next.

import { call, words } from "./api.js";
import { confirmThen, field, openDialog } from "./dialog.js";
import { addHardware, badge, correctRegistration } from "./dialogs.js";
import { h, icon, morph, toast } from "./dom.js";
import { bytes, full, sentence, sinceThen } from "./format.js";
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
          h("button", { class: "button danger", type: "button", "data-testid": "unregister", onclick: () => unregister(device) }, icon("trash"), "Unregister"),
        ),
      ),
      device.problem &&
        h(
          "div",
          { class: "notice bad", "data-testid": "device-problem" },
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
          { class: `notice ${device.hardware !== undefined && device.connected ? "good" : "next"}` },
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

/** @param {Device} device */
function rename(device) {
  const name = field({ label: "Name", name: "name", input: { value: device.name, maxlength: 64, autofocus: true } });
  const description = field({ label: "Description", name: "description", input: { value: device.description, maxlength: 256 } });
  const dialog = openDialog({
    title: "Rename device",
    body: [name.box, description.box],
    foot: [h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel"), h("button", { class: "button primary", type: "submit" }, "Save")],
    submit: async () => {
      try {
        await call("PATCH", `/api/v1/devices/${device.serial}`, { name: name.value, description: description.value });
        dialog.close();
      } catch (error) {
        name.refuse(words(error));
      }
    },
  });
}

/** @param {Device} device */
function unregister(device) {
  const named = device.name || device.serial;
  if (device.hardware !== undefined) {
    const dialog = openDialog({
      title: `${named} is still recorded`,
      body: [h("p", {}, "Remove its hardware from the recording server first. Then the registration can be released.")],
      foot: [
        h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Close"),
        h("button", { class: "button primary", type: "submit" }, "Go to the hardware"),
      ],
      submit: () => {
        dialog.close();
        location.hash = `#/hardware/${device.hardware}`;
      },
    });
    return;
  }
  confirmThen({
    title: `Unregister ${named}?`,
    text: "Its tunnel is closed and the claim is released: whoever holds the label can register it then, elsewhere or here again.",
    action: "Unregister",
    act: async () => {
      await call("DELETE", `/api/v1/devices/${device.serial}`);
      toast(`${named} is no longer registered.`);
      location.hash = `#/tunnel/${encodeURIComponent(device.tunnel_server)}`;
    },
  });
}
