// What stands around devices and cameras: tunnel servers, recording servers, hardware.

import { call } from "./api.js";
import { certificateCard } from "./certificates.js";
import { confirmThen } from "./dialog.js";
import { addHardware, badge, registerDevice } from "./dialogs.js";
import { h, icon, menu, toast } from "./dom.js";
import { bitrate, full, plural, sentence, sinceThen } from "./format.js";
import { crumbs, fact, missing } from "./page-device.js";
import { editServer, figures, refreshServer, removeServer } from "./server-dialogs.js";
import { sitesCard } from "./sites.js";
import { cameraMark, stepTitle } from "./steps.js";
import { store } from "./store.js";
import { markOf, pips } from "./tree.js";

/** @typedef {import("./types.js").Device} Device */
/** @typedef {import("./types.js").TunnelServer} TunnelServer */

/** @param {TunnelServer} server */
function reach(server) {
  if (!server.reachable) return { mark: "red", word: "Unreachable" };
  return server.problem ? { mark: "yellow", word: "Reachable, with a problem" } : { mark: "green", word: "Reachable" };
}

/** How a recording server gets to it. @param {import("./types.js").Hardware} hardware */
function reached({ device }) {
  switch (device.via) {
    case "tunnel":
      return h("span", {}, "through the tunnel of ", h("a", { href: `#/tunnel/${encodeURIComponent(device.server)}` }, device.server));
    case "direct":
      return h("span", { class: "mono" }, device.host);
    default:
      return h("span", { class: "mono" }, device.url);
  }
}

/** @param {{mark: string, word: string}} mark */
function stateBadge(mark) {
  return h("span", { class: `badge badge-${mark.mark}` }, markOf(mark), mark.word);
}

export function servicesPage() {
  const servers = store.tunnelServers;
  return h(
    "div",
    { class: "page", "data-key": "services" },
    h(
      "div",
      { class: "page-head" },
      h("div", { class: "page-title" }, h("h1", {}, "Remote connect services")),
      h("div", { class: "actions" }, h("a", { class: "button", href: "#/register-list" }, icon("list"), "Register a list"), h("button", { class: "button primary", type: "button", "data-testid": "add-server", onclick: () => editServer() }, icon("plus"), "Add tunnel server")),
    ),
    h("p", { class: "lead" }, "Devices at other places keep a tunnel to one of these servers. Nothing is opened in the other places' routers."),
    servers.length === 0
      ? h("div", { class: "card empty" }, icon("tunnel"), h("h2", {}, "No tunnel server"), h("p", {}, "Add one with its internal address, which this server reaches, and its external address, which devices dial."), h("div", { class: "actions" }, h("button", { class: "button primary", type: "button", onclick: () => editServer() }, "Add tunnel server")))
      : h(
          "div",
          { class: "card scroll-x" },
          h(
            "table",
            { class: "table" },
            h("thead", {}, h("tr", {}, h("th", {}, "Tunnel server"), h("th", {}, "State"), h("th", { class: "end" }, "Devices"), h("th", { class: "end spare" }, "Connected"), h("th", { class: "spare" }, "Devices dial"))),
            h(
              "tbody",
              {},
              servers.map((server) =>
                h(
                  "tr",
                  { "data-key": server.name },
                  h("td", {}, h("a", { class: "row-link", href: `#/tunnel/${encodeURIComponent(server.name)}` }, server.name), server.description && h("small", { class: "muted" }, ` ${server.description}`)),
                  h("td", {}, stateBadge(reach(server))),
                  h("td", { class: "end num" }, server.devices),
                  h("td", { class: "end num spare" }, server.connected),
                  h("td", { class: "spare mono" }, server.public.join(", ") || "–"),
                ),
              ),
            ),
          ),
        ),
    sitesCard(),
    certificateCard(),
  );
}

/** @param {string} name */
export function tunnelPage(name) {
  const server = store.tunnelServers.find((server) => server.name === name);
  if (!server) return missing(`Tunnel server ${name}`, "It was removed, or has another name now.");
  const devices = store.devices.filter((device) => device.tunnel_server === name);
  return h(
    "div",
    { class: "page", "data-key": `tunnel-${name}`, "data-testid": "tunnel-page" },
    h(
      "div",
      { class: "page-head" },
      h("div", { class: "page-title" }, crumbs([["#/services", "Remote connect services"]]), h("h1", {}, server.name, stateBadge(reach(server)))),
      h(
        "div",
        { class: "actions" },
        h("button", { class: "button primary", type: "button", onclick: () => registerDevice() }, icon("plus"), "Register device"),
        menu("More", "server-more", [
          ["refresh", "Refresh", "refresh-server", () => refreshServer(server)],
          !server.configured && ["edit", "Edit or rename…", "edit-server", () => editServer(server)],
          ["list", "Register a list…", "register-list", () => (location.hash = "#/register-list")],
          !server.configured && ["trash", "Remove…", "remove-server", () => removeServer(server), "danger"],
        ]),
      ),
    ),
    server.problem && h("div", { class: "notice bad" }, icon("alert"), h("div", { class: "notice-body" }, h("h2", {}, server.problem.code === "other-external-address" ? "Devices are told another address" : server.reachable ? "Its dispatcher has a problem" : "It cannot be reached"), h("p", {}, sentence(server.problem.message)))),
    h(
      "section",
      { class: "card" },
      h("div", { class: "card-head" }, h("h2", {}, "Server")),
      h(
        "dl",
        { class: "facts card-body" },
        fact(server.reachable ? "Reachable for" : "Away for", h("span", { title: full(server.since) }, sinceThen(server.since))),
        fact("Internal address", h("span", { class: "mono" }, server.url)),
        server.description && fact("Description", server.description),
        fact("Credentials", server.user ? `As ${server.user}` : "None"),
        server.trusted && fact("Trusted certificate", h("span", { class: "mono fingerprint" }, server.trusted)),
        server.configured && fact("Changed", "In the configuration file"),
        fact("Listens for devices", h("span", { class: "mono" }, server.external ?? "–")),
        fact("Devices dial", h("span", { class: "mono" }, server.public.join(", ") || "–")),
        fact("Dispatcher", h("span", { class: "mono" }, server.dispatcher ?? "–")),
        server.account && fact("Account there", h("span", { class: "mono" }, server.account)),
      ),
    ),
    h(
      "section",
      { class: "card" },
      h("div", { class: "card-head" }, h("h2", {}, "Devices"), h("span", { class: "muted num" }, `${server.connected} of ${plural(server.devices, "device")} connected`)),
      devices.length === 0
        ? h("div", { class: "empty" }, icon("device"), h("h2", {}, "No device is registered here"), h("p", {}, "Register one with the serial number and the OAK on its label."), h("div", { class: "actions" }, h("button", { class: "button primary", type: "button", onclick: () => registerDevice() }, "Register device")))
        : deviceTable(devices),
    ),
  );
}

/** @param {Device} device */
function rate(device) {
  const now = device.connected ? figures.of(device.serial) : undefined;
  return now ? bitrate(now.bps_in) : "–";
}

/** @param {Device} device */
function roundTrip(device) {
  const now = device.connected ? figures.of(device.serial) : undefined;
  return now?.rtt_ms === undefined ? "–" : `${now.rtt_ms} ms`;
}

/** @param {Device[]} devices */
function deviceTable(devices) {
  return h(
    "div",
    { class: "scroll-x" },
    h(
      "table",
      { class: "table" },
      h("thead", {}, h("tr", {}, h("th", {}, "Device"), h("th", {}, "State"), h("th", {}, "Step"), h("th", { class: "end spare" }, "Rate"), h("th", { class: "end spare" }, "Round trip"), h("th", { class: "spare" }, "Serial number"), h("th", { class: "spare" }, "Since"))),
      h(
        "tbody",
        {},
        devices.map((device) =>
          h(
            "tr",
            { "data-key": device.serial },
            h("td", {}, h("a", { class: "row-link", href: `#/device/${device.serial}` }, device.name || device.serial)),
            h("td", {}, badge(device)),
            h("td", {}, h("span", { class: "with-mark" }, pips(device), `${device.step_number} ${stepTitle(device.step)}`)),
            h("td", { class: "end spare num nowrap" }, rate(device)),
            h("td", { class: "end spare num nowrap" }, roundTrip(device)),
            h("td", { class: "spare mono" }, device.serial),
            h("td", { class: "spare num nowrap", title: full(device.since) }, device.since ? sinceThen(device.since) : "–"),
          ),
        ),
      ),
    ),
  );
}

export function serversPage() {
  return h(
    "div",
    { class: "page", "data-key": "servers" },
    h("div", { class: "page-head" }, h("div", { class: "page-title" }, h("h1", {}, "Servers"))),
    h(
      "div",
      { class: "card scroll-x" },
      h(
        "table",
        { class: "table" },
        h("thead", {}, h("tr", {}, h("th", {}, "Recording server"), h("th", {}, "State"), h("th", { class: "end spare" }, "Hardware"), h("th", { class: "end" }, "Cameras"))),
        h(
          "tbody",
          {},
          store.recordingServers.map((server) =>
            h(
              "tr",
              { "data-key": server.name },
              h("td", {}, h("a", { class: "row-link", href: `#/recording/${encodeURIComponent(server.name)}` }, server.name)),
              h("td", {}, stateBadge(server.reachable ? { mark: "green", word: "Running" } : { mark: "red", word: "Does not answer" })),
              h("td", { class: "end num spare" }, server.hardware),
              h("td", { class: "end num" }, server.cameras),
            ),
          ),
        ),
      ),
    ),
  );
}

/** @param {string} name */
export function recordingPage(name) {
  const server = store.recordingServers.find((server) => server.name === name);
  if (!server) return missing(`Recording server ${name}`, "It is not in the configuration.");
  return h(
    "div",
    { class: "page", "data-key": `recording-${name}` },
    h(
      "div",
      { class: "page-head" },
      h("div", { class: "page-title" }, crumbs([["#/servers", "Servers"]]), h("h1", {}, server.name, stateBadge(server.reachable ? { mark: "green", word: "Running" } : { mark: "red", word: "Does not answer" }))),
      h("div", { class: "actions" }, h("button", { class: "button primary", type: "button", onclick: () => addHardware() }, icon("plus"), "Add hardware")),
    ),
    server.problem && h("div", { class: "notice bad" }, icon("alert"), h("div", { class: "notice-body" }, h("h2", {}, "It does not answer"), h("p", {}, sentence(server.problem.message)))),
    h(
      "section",
      { class: "card" },
      h("div", { class: "card-head" }, h("h2", {}, "Hardware"), h("span", { class: "muted num" }, `${plural(server.hardware, "device")}, ${plural(server.cameras, "camera")}`)),
      store.hardware.length === 0
        ? h("div", { class: "empty" }, icon("hardware"), h("h2", {}, "Nothing is recorded yet"), h("p", {}, "Add devices that are registered and connected. Each of their channels becomes a camera and is recorded from then on."), h("div", { class: "actions" }, h("button", { class: "button primary", type: "button", onclick: () => addHardware() }, "Add hardware")))
        : h(
            "div",
            { class: "scroll-x" },
            h(
              "table",
              { class: "table" },
              h("thead", {}, h("tr", {}, h("th", {}, "Hardware"), h("th", {}, "Cameras"), h("th", { class: "spare" }, "Model"), h("th", { class: "spare" }, "Reached"))),
              h(
                "tbody",
                {},
                store.hardware.map((hardware) =>
                  h(
                    "tr",
                    { "data-key": String(hardware.id) },
                    h("td", {}, h("a", { class: "row-link", href: `#/hardware/${hardware.id}` }, hardware.name)),
                    h("td", {}, h("span", { class: "with-mark" }, store.camerasOf(hardware.id).map((camera) => [markOf(cameraMark(camera)), cameraMark(camera).word]).flat())),
                    h("td", { class: "spare" }, hardware.model),
                    h("td", { class: "spare" }, reached(hardware)),
                  ),
                ),
              ),
            ),
          ),
    ),
  );
}

/** @param {number} id */
export function hardwarePage(id) {
  const hardware = store.hardwareById(id);
  if (!hardware) return missing("This hardware", "It is not on any recording server, or was just removed.");
  const device = store.device(hardware.serial);
  const recorder = store.recordingServers[0]?.name ?? "Servers";
  return h(
    "div",
    { class: "page", "data-key": `hardware-${id}`, "data-testid": "hardware-page" },
    h(
      "div",
      { class: "page-head" },
      h("div", { class: "page-title" }, crumbs([["#/servers", "Servers"], [`#/recording/${encodeURIComponent(recorder)}`, recorder]]), h("h1", {}, hardware.name, device ? badge(device) : null)),
      h(
        "div",
        { class: "actions" },
        h(
          "button",
          {
            class: "button danger",
            type: "button",
            "data-testid": "remove-hardware",
            onclick: () =>
              confirmThen({
                title: `Remove ${hardware.name}?`,
                text: "Its cameras are no longer recorded and disappear from the page. The device stays registered and connected, and can be added again.",
                action: "Remove",
                act: async () => {
                  await call("DELETE", `/api/v1/hardware/${id}`);
                  toast(`${hardware.name} was removed.`);
                  location.hash = device ? `#/device/${device.serial}` : "#/";
                },
              }),
          },
          icon("trash"),
          "Remove",
        ),
      ),
    ),
    h(
      "section",
      { class: "card" },
      h("div", { class: "card-head" }, h("h2", {}, "Hardware")),
      h(
        "dl",
        { class: "facts card-body" },
        fact("Model", hardware.model || "–"),
        fact("Serial number", h("span", { class: "mono" }, hardware.serial)),
        fact("Reached", reached(hardware)),
        device && fact("Device", h("a", { href: `#/device/${device.serial}` }, device.name || device.serial)),
      ),
    ),
    h(
      "section",
      { class: "card" },
      h("div", { class: "card-head" }, h("h2", {}, "Cameras")),
      store.camerasOf(id).map((camera) =>
        h(
          "a",
          { class: "pick row-link", href: `#/camera/${camera.id}`, "data-key": String(camera.id) },
          icon("camera"),
          h("span", { class: "pick-text" }, h("b", {}, camera.name), h("small", {}, camera.status.problem ? sentence(camera.status.problem.message) : `${cameraMark(camera).word} for ${sinceThen(camera.status.since)}`)),
          stateBadge(cameraMark(camera)),
        ),
      ),
    ),
  );
}
