// The page: what is where, by the address after the #, redrawn when the world changes.

import { call, signedInAs, words } from "./api.js";
import { announce, byId, h, icon, morph, theme } from "./dom.js";
import { addHardware, registerDevice } from "./dialogs.js";
import { deviceMark } from "./steps.js";
import { store } from "./store.js";
import { certificates } from "./certificates.js";
import { drawTree, markOf, startTree } from "./tree.js";
import { plural } from "./format.js";
import { AuditPage } from "./page-audit.js";
import { CameraPage } from "./page-camera.js";
import { DevicePage } from "./page-device.js";
import { HomePage } from "./page-home.js";
import { LabelsPage } from "./page-labels.js";
import { ListPage } from "./page-list.js";
import { PlanPage } from "./page-plan.js";
import { hardwarePage, recordingPage, serversPage, servicesPage, tunnelPage } from "./page-servers.js";
import { SettingsPage } from "./page-settings.js";

/**
 * A place: it draws itself into an element, again whenever the world has changed, until it ends.
 * @typedef {object} Page
 * @property {string} title
 * @property {() => void} draw
 * @property {() => void} [end]
 */

/** @type {Page | null} */
let page = null;
/** @type {import("./types.js").Whoami} */
let me;

/** @param {string} hash @param {HTMLElement} into @returns {Page} */
function open(hash, into) {
  const [path, query] = hash.replace(/^#\/?/, "").split("?");
  const [kind, ...rest] = path.split("/").map(decodeURIComponent);
  const name = rest.join("/");
  switch (kind) {
    case "device":
      return new DevicePage(into, name, me);
    case "tunnel":
      return simple(into, name, () => tunnelPage(name));
    case "recording":
      return simple(into, name, () => recordingPage(name));
    case "hardware":
      return simple(into, "Hardware", () => hardwarePage(Number(name)));
    case "services":
      return simple(into, "Remote connect services", servicesPage);
    case "servers":
      return simple(into, "Servers", serversPage);
    case "camera":
      return new CameraPage(into, Number(name), new URLSearchParams(query));
    case "register-list":
      return new ListPage(into);
    case "plan":
      return new PlanPage(into);
    case "labels":
      return new LabelsPage(into);
    case "settings":
      return new SettingsPage(into, me);
    case "audit":
      return new AuditPage(into);
    default:
      return new HomePage(into, me);
  }
}

/** @param {HTMLElement} into @param {string} title @param {() => HTMLElement} view @returns {Page} */
function simple(into, title, view) {
  return { title, draw: () => morph(into, view()) };
}

function place() {
  return location.hash || "#/";
}

function navigate() {
  page?.end?.();
  const main = byId("main");
  main.replaceChildren();
  main.scrollTop = 0;
  page = open(place(), main);
  page.draw();
  document.title = `${page.title} · Homing`;
  const kind = place().replace(/^#\/?/, "").split(/[/?]/)[0] || "home";
  document.body.dataset.place = kind;
  for (const link of document.querySelectorAll(".bottom a, .side-link, .top a.quiet-button")) {
    const here = /** @type {HTMLAnchorElement} */ (link).getAttribute("href") === (kind === "home" ? "#/" : place());
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  drawTree(byId("tree"), place());
}

function draw() {
  byId("offline").hidden = store.online;
  document.body.classList.toggle("stale", !store.online);
  drawTree(byId("tree"), place());
  drawSummary();
  page?.draw();
}

function drawSummary() {
  const devices = store.devices;
  const kinds = /** @type {const} */ ([
    ["green", "connected"],
    ["yellow", "ready to add"],
    ["red", "not connected"],
    ["offline", "offline"],
  ]);
  const count = (/** @type {string} */ mark) => devices.filter((device) => deviceMark(device).mark === mark).length;
  morph(
    byId("summary"),
    kinds
      .filter(([mark]) => count(mark) > 0)
      .map(([mark, word]) => h("span", { class: "summary-item" }, markOf({ mark, word }), h("b", {}, count(mark)), word)),
  );
  const ready = count("yellow");
  const badge = byId("ready-count");
  badge.hidden = ready === 0;
  badge.textContent = String(ready);
  badge.setAttribute("aria-label", `${plural(ready, "device")} ready`);
}

async function start() {
  theme.apply();
  me = await call("GET", "/api/v1/session");
  signedInAs(me.user);
  byId("user-name").textContent = me.user;
  byId("labels-link").hidden = !me.simulated_cameras;
  byId("labels-tab").hidden = !me.simulated_cameras;
  byId("theme").onclick = () => theme.set(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme.apply);
  byId("register").onclick = () => registerDevice();
  byId("add-hardware").onclick = () => addHardware();
  byId("sign-out").onclick = async () => {
    await call("DELETE", "/api/v1/session").catch(() => undefined);
    location.assign("/sign-in");
  };
  for (const link of byId("user-menu").querySelectorAll("a")) {
    link.addEventListener("click", () => byId("user-menu").hidePopover());
  }
  byId("skip").onclick = (event) => {
    event.preventDefault();
    byId("main").focus();
  };
  startTree(byId("tree"), place);
  store.listen(draw);
  certificates.watch();
  // What changes on its own is said aloud, once, in the words that stand on the page.
  store.deviceListeners.add((before, now) => {
    const word = deviceMark(now).word;
    if (deviceMark(before).word !== word) announce(`${now.name || now.serial}: ${word}`);
  });
  store.start();
  addEventListener("hashchange", navigate);
  navigate();
}

start().catch((error) => {
  if (error?.status === 401) return location.assign(`/sign-in${location.hash}`);
  morph(
    byId("main"),
    h(
      "div",
      { class: "page" },
      h("div", { class: "card empty", role: "alert" }, icon("alert"), h("h2", {}, "The page could not start"), h("p", {}, words(error)), h("div", { class: "actions" }, h("button", { class: "button primary", type: "button", onclick: () => location.reload() }, icon("refresh"), "Try again"))),
    ),
  );
});
