// A registered device: where it stands on the way from a label to a picture, and what to do next.

import { call, words } from "./api.js";
import { leave, movingWords, moveDevice, releaseLeft, rename, showPassword, targets, transfer, undoMove, unregister } from "./device-dialogs.js";
import { addHardware, badge, correctRegistration } from "./dialogs.js";
import { h, icon, menu, morph, toast } from "./dom.js";
import { bitrate, bytes, duration, full, plural, sentence, sinceThen } from "./format.js";
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
    /** The last connections, the newest first; none before they were asked for. @type {import("./types.js").Connection[] | null} */
    this.history = null;
    /** The uplinks that the history was asked for. */
    this.historyOf = "";
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
    await this.refreshHistory();
  }

  /** Asks what became of its connections, when that has changed. */
  async refreshHistory() {
    const all = store.registrations(this.serial);
    const of = all.map((device) => `${device.tunnel_server} ${device.connected} ${device.since} ${device.peer}`).join();
    if (of === this.historyOf || document.hidden) return;
    try {
      this.history = await call("GET", `/api/v1/devices/${this.serial}/history`);
      this.historyOf = of;
      this.draw();
    } catch {
      // Its tunnel server is away: what was last known of it still stands.
    }
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
    const kept = store.registrations(device.serial).filter((known) => known.moving?.keep);
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
            moving && !moving.keep && ["refresh", moving.state === "moved" ? "Bring it back…" : "Undo the move…", "undo-move", () => undoMove(from, movingWords(moving).to)],
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
              !moving.keep && h("button", { class: "button small", type: "button", onclick: () => undoMove(from, movingWords(moving).to) }, moving.state === "moved" ? "Bring it back" : "Undo"),
              moving.keep && kept.map((at, index) => h("button", { class: "button small", type: "button", "data-testid": `leave-${at.tunnel_server}`, onclick: () => leave(at, kept[1 - index]?.tunnel_server ?? movingWords(moving).to) }, `Leave ${at.tunnel_server}`)),
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
            device.connected && fact("Carried by", h("a", { href: `#/tunnel/${encodeURIComponent(device.tunnel_server)}`, "data-testid": "carried-by" }, carriers(this.serial).join(" and "))),
            device.connected && (figures?.uplinks ?? []).length < 2 && fact("Calls from", device.peer ? h("span", { class: "mono" }, device.peer) : "–"),
            device.connected && (figures?.uplinks ?? []).length > 1 && fact("Uplinks", h("div", {}, (figures?.uplinks ?? []).map((uplink) => h("div", { class: "mono" }, `${uplink.dialled ?? "–"} from ${uplink.peer}, ${uplink.rtt_ms ?? "–"} ms`)))),
            device.connected && fact("Round trip", h("span", { "data-testid": "round-trip" }, figures?.rtt_ms === undefined ? "–" : `${figures.rtt_ms} ms`)),
            device.connected && fact("Rate", h("span", { "data-testid": "rate" }, figures ? `${bitrate(figures.bps_in)} in, ${bitrate(figures.bps_out)} out` : "–")),
            device.connected && fact("Received", figures ? bytes(figures.bytes_in) : "–"),
            device.connected && fact("Sent", figures ? bytes(figures.bytes_out) : "–"),
            device.last_problem && fact("Last error", h("span", { title: device.last_problem.code, "data-testid": "last-problem" }, `${device.last_problem.step ? `Step ${stepNumber(device.last_problem.step)}, ` : ""}${full(device.last_problem.at)}: ${sentence(device.last_problem.message)}`)),
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
            device.site && fact("Site", device.site),
            fact("Description", device.description || "–"),
            fact("Hardware", hardware ? h("a", { href: `#/hardware/${hardware.id}` }, hardware.name) : "Not added"),
          ),
        ),
        this.history !== null && this.history.length > 0 && connections(this.history),
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

/** The tunnel servers that it is connected at. @param {string} serial */
function carriers(serial) {
  return store.registrations(serial).filter((known) => known.connected).map((known) => known.tunnel_server);
}

/** How many connections are shown before somebody asks for more. */
const SHOWN = 8;

/** @param {import("./types.js").Connection[]} history */
function connections(history) {
  const several = history.some((one) => one.tunnel_server !== history[0].tunnel_server);
  const rows = history.map((one) =>
    h(
      "tr",
      {},
      h("td", { class: "num nowrap" }, full(one.since)),
      several && h("td", {}, one.tunnel_server),
      h("td", { class: "num nowrap" }, one.code === undefined ? "stands" : one.until === undefined ? "–" : duration(Date.parse(one.until) - Date.parse(one.since))),
      h("td", {}, one.code === undefined ? "–" : sentence(one.reason ?? one.code)),
      h("td", { class: "spare mono nowrap" }, one.peer),
      h("td", { class: "spare end num nowrap" }, one.code === undefined ? "–" : bytes(one.bytes_in)),
    ),
  );
  const table = (/** @type {HTMLElement[]} */ rows) =>
    h(
      "div",
      { class: "scroll-x" },
      h("table", { class: "table" }, h("thead", {}, h("tr", {}, h("th", {}, "Connected"), several && h("th", {}, "At"), h("th", {}, "For"), h("th", {}, "Ended because"), h("th", { class: "spare" }, "From"), h("th", { class: "spare end" }, "Received"))), h("tbody", {}, rows)),
    );
  return h(
    "section",
    { class: "card wide", "data-testid": "device-history" },
    h("div", { class: "card-head" }, h("h2", {}, "Connections"), h("span", { class: "muted num" }, `The last ${history.length}`)),
    table(rows.slice(0, SHOWN)),
    rows.length > SHOWN && h("details", {}, h("summary", {}, `${rows.length - SHOWN} older`), table(rows.slice(SHOWN))),
  );
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
