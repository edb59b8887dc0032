// What an administrator starts: register a device (step 1), Add Hardware (step 8).

import { ApiError, call, words } from "./api.js";
import { field, openDialog, passwordField } from "./dialog.js";
import { announce, h, icon, morph, toast } from "./dom.js";
import { hexDigits, oakLabel, plural } from "./format.js";
import { deviceMark, stepTitle } from "./steps.js";
import { store } from "./store.js";
import { markOf } from "./tree.js";

/** @typedef {import("./types.js").SimulatedCamera} SimulatedCamera */
/** @typedef {import("./types.js").Device} Device */
/** @typedef {import("./types.js").Hardware} Hardware */

/** Which field a refusal of step 1 belongs to. @type {Record<string, "serial" | "oak" | "user" | "password" | "name">} */
export const FIELD_OF = {
  "bad-serial": "serial",
  "already-registered": "serial",
  "claimed-by-another-account": "serial",
  "wrong-serial": "serial",
  "unknown-serial": "serial",
  "bad-oak": "oak",
  "wrong-oak": "oak",
  "wrong-credentials": "password",
};

/**
 * Registers a device.
 * @param {SimulatedCamera} [label] to fill the form from
 */
export function registerDevice(label) {
  const servers = store.tunnelServers;
  const serial = field({
    label: "Serial number",
    name: "serial",
    hint: "On the device's label: twelve digits 0–9, A–F. Its MAC address.",
    input: { class: "code", autocomplete: "off", autocapitalize: "characters", spellcheck: "false", placeholder: "00408C702009", "data-testid": "serial", autofocus: true },
  });
  const oak = field({
    label: "Owner authentication key (OAK)",
    name: "oak",
    hint: "On the same label: twelve digits. It proves that you hold the device.",
    input: { class: "code", autocomplete: "off", autocapitalize: "characters", spellcheck: "false", placeholder: "0123-4567-89AB", "data-testid": "oak" },
  });
  const user = field({ label: "Device's user", name: "user", input: { autocomplete: "off", autocapitalize: "none", spellcheck: "false", value: "root", "data-testid": "device-user" } });
  const password = passwordField("Device's password");
  const name = field({ label: "Name", name: "name", hint: "What people call it; the serial number if empty.", input: { autocomplete: "off", maxlength: 64, "data-testid": "device-name" } });
  const description = field({ label: "Description", name: "description", hint: "Where it hangs, who to call: anything worth knowing.", input: { autocomplete: "off", maxlength: 256 } });
  const server = field({
    label: "Tunnel server",
    name: "tunnel_server",
    control: h("select", {}, servers.map((server) => h("option", { value: server.name }, server.name))),
  });
  const fields = { serial, oak, user, password, name };

  // A scanner types the whole label into whichever field has the focus.
  for (const { element } of [serial, oak]) {
    element.addEventListener("input", (event) => {
      const scanned = element.value.trim().match(SCANNED);
      if (!scanned) return;
      event.stopImmediatePropagation();
      serial.element.value = scanned[1].toUpperCase();
      oak.element.value = oakLabel(hexDigits(scanned[2]).digits);
      for (const filled of [serial, oak]) {
        filled.refuse("");
        filled.good(true);
      }
      password.element.focus();
    });
  }
  formatAsTyped(serial, (digits) => digits);
  formatAsTyped(oak, oakLabel);
  if (label) {
    serial.element.value = label.serial;
    oak.element.value = label.oak;
    user.element.value = label.user;
    password.element.value = label.password;
    name.element.value = label.name;
    serial.good(true);
    oak.good(true);
  }

  const general = h("div", { class: "field-error", role: "alert", hidden: true, "data-testid": "register-error" });
  const submit = h("button", { class: "button primary", type: "submit", "data-testid": "register-submit" }, "Register");
  const dialog = openDialog({
    title: "Register device",
    testid: "register-dialog",
    body: [
      servers.length === 0 &&
        h("div", { class: "notice bad" }, icon("alert"), h("div", { class: "notice-body" }, "There is no tunnel server yet. Add one under Remote connect services.")),
      serial.box,
      oak.box,
      h("div", { class: "columns" }, user.box, password.box),
      name.box,
      description.box,
      servers.length > 1 && server.box,
      general,
    ],
    foot: [
      h("a", { class: "foot-link", href: "#/register-list", "data-testid": "register-list", onclick: () => dialog.close() }, "Many? Register a list"),
      h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel"),
      submit,
    ],
    submit: async () => {
      general.hidden = true;
      Object.values(fields).forEach((field) => field.refuse(""));
      checkTyped(serial, "serial number");
      checkTyped(oak, "OAK");
      user.refuse(user.value ? "" : "The dispatcher logs in to the device with this user; enter its name.");
      const wrong = Object.values(fields).find((field) => field.element.hasAttribute("aria-invalid"));
      if (wrong) return wrong.element.focus();
      submit.disabled = true;
      submit.textContent = "Registering…";
      try {
        /** @type {Device} */
        const device = await call("POST", "/api/v1/devices", {
          tunnel_server: servers.length > 1 ? server.value : undefined,
          serial: serial.value,
          oak: oak.value,
          user: user.value,
          password: password.element.value,
          name: name.value,
          description: description.value,
        });
        dialog.close();
        location.hash = `#/device/${device.serial}`;
        if (device.relay === "pending") toast("Registered. The dispatcher cannot be reached yet; it is tried again by itself.");
        else toast(`${device.name || device.serial} is registered.`, "good");
      } catch (error) {
        const place = error instanceof ApiError ? FIELD_OF[error.code] : undefined;
        if (place) {
          fields[place].refuse(words(error));
          fields[place].element.focus();
        } else {
          general.replaceChildren(icon("alert"), h("span", {}, words(error)));
          general.hidden = false;
        }
      } finally {
        submit.disabled = false;
        submit.textContent = "Register";
      }
    },
  });
}

/**
 * Corrects what was typed wrong at registering, or has changed on the device since: no need to begin again.
 * @param {Device} device
 */
export function correctRegistration(device) {
  const oak = field({
    label: "Owner authentication key (OAK)",
    name: "oak",
    hint: "Empty: stays as it is.",
    input: { class: "code", autocomplete: "off", autocapitalize: "characters", spellcheck: "false", placeholder: "0123-4567-89AB", "data-testid": "oak" },
  });
  const user = field({ label: "Device's user", name: "user", input: { autocomplete: "off", autocapitalize: "none", spellcheck: "false", value: device.user, "data-testid": "device-user" } });
  const password = passwordField("Device's password", "Empty: stays as it is.");
  formatAsTyped(oak, oakLabel);
  const fields = { oak, user, password };
  const first = { "wrong-oak": oak, "wrong-credentials": password }[device.problem?.code ?? ""] ?? oak;
  first.element.setAttribute("autofocus", "");
  const general = h("div", { class: "field-error", role: "alert", hidden: true });
  const submit = h("button", { class: "button primary", type: "submit", "data-testid": "correct-submit" }, "Save and try again");
  const dialog = openDialog({
    title: `Correct ${device.name || device.serial}`,
    testid: "correct-dialog",
    body: [
      h("p", { class: "muted" }, "Serial number ", h("span", { class: "mono" }, device.serial), ". If that is wrong, unregister the device and register the right one."),
      oak.box,
      h("div", { class: "columns" }, user.box, password.box),
      general,
    ],
    foot: [h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel"), submit],
    submit: async () => {
      general.hidden = true;
      Object.values(fields).forEach((field) => field.refuse(""));
      if (oak.value) checkTyped(oak, "");
      user.refuse(user.value ? "" : "The dispatcher logs in to the device with this user; enter its name.");
      const wrong = Object.values(fields).find((field) => field.element.hasAttribute("aria-invalid"));
      if (wrong) return wrong.element.focus();
      submit.disabled = true;
      try {
        await call("PATCH", `/api/v1/devices/${device.serial}`, { oak: oak.value || undefined, user: user.value, password: password.element.value || undefined });
        dialog.close();
        toast("Corrected.", "good");
      } catch (error) {
        const place = error instanceof ApiError ? /** @type {Record<string, ReturnType<typeof field> | undefined>} */ (fields)[FIELD_OF[error.code]] : undefined;
        if (place) {
          place.refuse(words(error));
          place.element.focus();
        } else {
          general.replaceChildren(icon("alert"), h("span", {}, words(error)));
          general.hidden = false;
        }
      } finally {
        submit.disabled = false;
      }
    },
  });
}

/** What the QR code of a label says, as a scanner types it. */
const SCANNED = /^homing:([0-9a-f]{12});([0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4})$/i;

/**
 * Formats twelve digits while they are typed, keeping the caret behind the digit it was behind.
 * @param {ReturnType<typeof field>} place
 * @param {(digits: string) => string} print
 */
function formatAsTyped(place, print) {
  const input = place.element;
  input.addEventListener("input", () => {
    const caret = input.selectionStart ?? input.value.length;
    const before = hexDigits(input.value.slice(0, caret)).digits.length;
    const { digits, wrong } = hexDigits(input.value);
    // A scanner is at it: not yet wrong.
    if ("homing:".startsWith(input.value.slice(0, 7).toLowerCase()) && input.value) return;
    // What is no hex digit stays as typed, so that its owner can see what is meant below.
    if (!wrong) {
      input.value = print(digits.slice(0, 24));
      let position = 0;
      for (let seen = 0; seen < before && position < input.value.length; position += 1) {
        if (input.value[position] !== "-") seen += 1;
      }
      input.setSelectionRange(position, position);
    }
    place.refuse(wrong ? notHex(wrong) : "");
    place.good(!wrong && digits.length === 12);
  });
  input.addEventListener("blur", () => {
    if (input.value.trim()) checkTyped(place, "");
  });
}

/** @param {string} wrong */
function notHex(wrong) {
  const meant = { O: " A zero, perhaps?", I: " A one, perhaps?", L: " A one, perhaps?" }[wrong] ?? "";
  return `“${wrong}” is not one of 0–9 and A–F.${meant}`;
}

/** @param {ReturnType<typeof field>} place @param {string} what for an empty field; nothing: an empty one is fine */
function checkTyped(place, what) {
  const { digits, wrong } = hexDigits(place.value);
  if (wrong) place.refuse(notHex(wrong));
  else if (digits.length === 0 && what) place.refuse(`Enter the ${what} from the device's label.`);
  else if (digits.length !== 12) place.refuse(`${plural(digits.length, "digit")} where there should be 12.`);
  else place.refuse("");
}

/**
 * The Add Hardware wizard.
 * @param {string[]} [preselected] serial numbers
 */
export function addHardware(preselected = []) {
  /** @type {"method" | "choose" | "result"} */
  let stage = preselected.length ? "choose" : "method";
  const chosen = new Set(preselected);
  /** @type {Map<string, {device: Device, hardware?: Hardware, problem?: string}>} */
  const results = new Map();

  const body = h("div", {});
  const foot = h("div", { class: "actions" });
  const steps = h("ol", { class: "wizard-steps" });
  const dialog = openDialog({
    title: "Add hardware",
    testid: "add-dialog",
    body: [body],
    foot: [steps, foot],
    submit: () => next(),
    closed: () => stop(),
  });
  const stop = store.listen(draw);

  async function next() {
    if (stage === "method") {
      stage = "choose";
      draw();
      /** @type {HTMLElement | null} */ (body.querySelector("input"))?.focus();
    } else if (stage === "choose") {
      const devices = ready().filter((device) => chosen.has(device.serial));
      if (devices.length === 0) return;
      stage = "result";
      devices.forEach((device) => results.set(device.serial, { device }));
      draw();
      // A few at a time: each asks its device through its tunnel.
      const waiting = [...devices];
      const worker = async () => {
        for (let device = waiting.shift(); device; device = waiting.shift()) await addOne(device);
      };
      await Promise.all([worker(), worker(), worker(), worker()]);
      const failed = [...results.values()].filter((result) => result.problem).length;
      announce(failed > 0 ? `${plural(failed, "device")} could not be added` : `${plural(devices.length, "device")} added`);
      /** @type {HTMLElement | null} */ (foot.querySelector("button"))?.focus();
    } else {
      dialog.close();
      const added = [...results.values()].flatMap((result) => result.hardware ?? []);
      if (added.length === 1 && added[0].cameras.length > 0) location.hash = `#/camera/${added[0].cameras[0].id}`;
      else if (added.length > 0) location.hash = "#/";
    }
  }

  /** @param {Device} device */
  async function addOne(device) {
    const result = { device };
    try {
      const hardware = await call("POST", "/api/v1/hardware", { serial: device.serial });
      results.set(device.serial, { ...result, hardware });
    } catch (error) {
      results.set(device.serial, { ...result, problem: words(error) });
    }
    draw();
  }

  function ready() {
    return store.devices.filter((device) => device.connected && device.hardware === undefined);
  }

  function draw() {
    const stages = [
      ["method", "How"],
      ["choose", "Which"],
      ["result", "Result"],
    ];
    morph(steps, stages.map(([key, text]) => h("li", { "aria-current": key === stage ? "step" : null }, text)));
    if (stage === "method") drawMethod();
    else if (stage === "choose") drawChoice();
    else drawResult();
  }

  function drawMethod() {
    morph(
      body,
      h("p", { class: "muted" }, "How does the recording server reach the hardware?"),
      h(
        "label",
        { class: "choice" },
        h("input", { type: "radio", name: "method", value: "remote", checked: true, "data-testid": "remote-connect" }),
        h("span", {}, h("b", {}, "Remote connect hardware"), h("span", { class: "muted" }, "Devices that have phoned home and keep a tunnel to one of your tunnel servers, wherever they are.")),
      ),
    );
    morph(foot, cancel(), h("button", { class: "button primary", type: "submit", "data-testid": "add-next" }, "Next"));
  }

  function drawChoice() {
    const devices = ready();
    const away = store.devices.filter((device) => device.state === "red");
    chosen.forEach((serial) => devices.some((device) => device.serial === serial) || chosen.delete(serial));
    /** @param {string} serial @param {boolean} on */
    const choose = (serial, on) => {
      if (on) chosen.add(serial);
      else chosen.delete(serial);
      draw();
    };
    const all = devices.length > 0 && chosen.size === devices.length;
    morph(
      body,
      devices.length > 1 &&
        h(
          "label",
          { class: "pick-all", "data-key": "all" },
          checkbox({ checked: all, "data-testid": "pick-all", onchange: (/** @type {any} */ event) => { devices.forEach((device) => (event.target.checked ? chosen.add(device.serial) : chosen.delete(device.serial))); draw(); } }),
          `All ${devices.length} ready devices`,
        ),
      devices.length > 0 &&
        h(
          "div",
          { class: "pick-list", "data-key": "list" },
          devices.map((device) =>
            h(
              "label",
              { class: "pick", "data-key": device.serial },
              checkbox({ checked: chosen.has(device.serial), "data-testid": `pick-${device.serial}`, onchange: (/** @type {any} */ event) => choose(device.serial, event.target.checked) }),
              h("span", { class: "pick-text" }, h("b", {}, device.name || device.serial), h("small", {}, h("span", { class: "mono" }, device.serial), ` · ${device.tunnel_server}`)),
              badge(device),
            ),
          ),
        ),
      devices.length === 0 &&
        h(
          "div",
          { class: "empty", "data-key": "none" },
          icon("services"),
          h("h2", {}, "No device is ready yet"),
          h("p", {}, away.length > 0 ? "These are registered, but not connected. Press their one-click buttons; they appear here by themselves." : "Register a device first and press its one-click button; it appears here by itself."),
        ),
      away.length > 0 && h("h3", { class: "under", "data-key": "away-head" }, "Registered, but not connected"),
      away.length > 0 &&
        h(
          "div",
          { class: "pick-list", "data-key": "away" },
          away.map((device) =>
            h("div", { class: "pick dim", "data-key": device.serial }, h("span", { class: "pick-text" }, h("b", {}, device.name || device.serial), h("small", {}, `Last step: ${device.step_number} ${stepTitle(device.step)}`)), badge(device)),
          ),
        ),
    );
    morph(foot, cancel(), h("button", { class: "button primary", type: "submit", disabled: chosen.size === 0, "data-testid": "add-selected" }, chosen.size > 1 ? `Add ${chosen.size} devices` : "Add device"));
  }

  function drawResult() {
    const all = [...results.values()];
    const open = all.filter((result) => !result.hardware && !result.problem).length;
    const failed = all.filter((result) => result.problem).length;
    morph(
      body,
      h(
        "div",
        { class: "pick-list", "data-testid": "add-results" },
        all.map(({ device, hardware, problem }) =>
          h(
            "div",
            { class: "pick", "data-key": device.serial },
            hardware ? icon("check", "good") : problem ? icon("alert", "bad") : h("span", { class: "spinner" }),
            h(
              "span",
              { class: "pick-text" },
              h("b", {}, device.name || device.serial),
              h("small", {}, hardware ? `Added: ${hardware.cameras.map((camera) => camera.name).join(", ")}` : (problem ?? "Asking the device for its identity and its media profiles…")),
            ),
          ),
        ),
      ),
      open === 0 && failed > 0 && h("p", { class: "field-hint" }, "What failed was not added. Mend it and add it again."),
    );
    morph(foot, h("button", { class: "button primary", type: "submit", disabled: open > 0, "data-testid": "add-finish" }, all.length - failed === 1 ? "Watch it" : "Finish"));
  }

  function cancel() {
    return h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel");
  }

  draw();
  // Only now is there something to have the focus: until here it is on Close, and Enter would end it all.
  /** @type {HTMLElement | null} */ (body.querySelector("input") ?? foot.querySelector("button"))?.focus();
}

/** `checked` is the attribute only; what is ticked now is a property, which morphing does not see. @param {Record<string, any>} attributes */
function checkbox(attributes) {
  const input = h("input", { type: "checkbox", ...attributes });
  input.checked = attributes.checked;
  return input;
}

/** @param {Device} device */
export function badge(device) {
  const mark = deviceMark(device);
  return h("span", { class: `badge badge-${mark.mark}` }, markOf(mark), mark.word);
}
