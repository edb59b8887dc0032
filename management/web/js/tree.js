// The administrator's tree: Remote connect services → tunnel servers → devices; Servers → recording
// servers → hardware → cameras. Keyboard as in the WAI-ARIA tree pattern: one stop for Tab, arrows inside.

import { announce, byId, h, icon, morphNode, s } from "./dom.js";
import { cameraMark, deviceMark, STEPS, stepNumber, stepTitle } from "./steps.js";
import { store } from "./store.js";

/** @typedef {import("./types.js").Device} Device */

/**
 * @typedef {object} Node
 * @property {string} key
 * @property {string} href
 * @property {string} symbol
 * @property {string} name
 * @property {number} level
 * @property {() => Child[]} [more] what stands below the name
 * @property {() => Child} [mark]
 * @property {Node[]} [children] none: a leaf
 * @property {string} [empty] what to do when there are no children
 * @property {string} spoken what a screen reader adds to the name; with `detail` it says all that is shown
 * @property {string} [detail]
 * @property {string} [testid]
 */
/** @typedef {import("./dom.js").Child} Child */

/** What the user has folded away. @type {Set<string>} */
const folded = new Set();

/** The node that Tab leads to. @type {string | null} */
let focusKey = null;

/** What the user looks for, in small letters; empty: everything is shown. */
let wanted = "";

/** From so many devices on, looking for one by eye takes too long. */
const FIND_FROM = 8;

let typed = "";
let typedAt = 0;

/** @param {{mark: string, word: string}} mark */
export function markOf(mark) {
  return h("span", { class: `mark mark-${mark.mark}`, "aria-hidden": "true" });
}

/** Eight small bars. @param {Device} device */
export function pips(device) {
  const failed = device.problem?.step ? stepNumber(device.problem.step) : 0;
  return h(
    "span",
    { class: `pips ${device.step_number === 8 ? "all" : ""}`, "aria-hidden": "true" },
    STEPS.map((_, index) => h("i", { class: failed === index + 1 ? "bad" : index < device.step_number ? "done" : "" })),
  );
}

/** @returns {Node[]} */
function model() {
  const tunnels = store.tunnelServers.map((server) => {
    const devices = store.devices.filter((device) => device.tunnel_server === server.name);
    return node({
      key: `tunnel/${server.name}`,
      href: `#/tunnel/${encodeURIComponent(server.name)}`,
      symbol: "tunnel",
      name: server.name,
      level: 2,
      mark: () => markOf({ mark: !server.reachable ? "red" : server.problem ? "yellow" : "green", word: "" }),
      more: server.reachable ? undefined : () => [h("span", {}, "Unreachable")],
      detail: server.problem?.code,
      spoken: server.reachable ? `${server.connected} of ${server.devices} devices connected` : "unreachable",
      children: devices.map(deviceNode),
      empty: server.reachable ? "No devices yet. Register one." : undefined,
    });
  });
  const recorders = store.recordingServers.map((server) =>
    node({
      key: `recording/${server.name}`,
      href: `#/recording/${encodeURIComponent(server.name)}`,
      symbol: "server",
      name: server.name,
      level: 2,
      mark: () => markOf({ mark: server.reachable ? "green" : "red", word: "" }),
      spoken: server.reachable ? "reachable" : "does not answer",
      children: store.hardware.map((hardware) => {
        const device = store.device(hardware.serial);
        const away = device && !device.connected;
        return node({
          key: `hardware/${hardware.id}`,
          href: `#/hardware/${hardware.id}`,
          symbol: "hardware",
          name: hardware.name,
          level: 3,
          mark: away ? () => markOf({ mark: "offline", word: "Offline" }) : undefined,
          spoken: away ? "offline" : "",
          children: store.camerasOf(hardware.id).map((camera) => {
            const mark = cameraMark(camera);
            return node({
              key: `camera/${camera.id}`,
              href: `#/camera/${camera.id}`,
              symbol: "camera",
              name: camera.name,
              level: 4,
              mark: () => h("span", { class: "with-mark" }, h("small", { class: "muted" }, mark.word), markOf(mark)),
              spoken: mark.word,
              testid: `tree-camera-${camera.id}`,
            });
          }),
        });
      }),
      empty: server.reachable ? "No hardware yet. Add a device that is ready." : undefined,
    }),
  );
  return [
    node({ key: "services", href: "#/services", symbol: "services", name: "Remote connect services", level: 1, children: tunnels, empty: "No tunnel server is configured." }),
    node({ key: "servers", href: "#/servers", symbol: "servers", name: "Servers", level: 1, children: recorders }),
  ];
}

/** @param {Device} device @returns {Node} */
function deviceNode(device) {
  const mark = deviceMark(device);
  const step = `step ${device.step_number} of 8, ${stepTitle(device.step).toLowerCase()}`;
  return node({
    key: `device/${device.tunnel_server}/${device.serial}`,
    href: `#/device/${device.serial}`,
    symbol: "device",
    name: device.name || device.serial,
    level: 3,
    detail: device.problem?.step,
    mark: () => markOf(mark),
    more: () => [
      h("span", { class: "node-words" }, h("span", { "data-testid": `state-${device.serial}` }, mark.word), h("span", { "data-testid": `step-${device.serial}` }, ` · ${device.step_number} ${stepTitle(device.step)}`)),
      pips(device),
    ],
    spoken: `${mark.word}, ${step}`,
    testid: `tree-device-${device.serial}`,
  });
}

/** @param {Partial<Node> & {key: string, href: string, symbol: string, name: string, level: number}} given @returns {Node} */
function node(given) {
  return { spoken: "", ...given };
}

/** The nodes that can be seen, in order. @param {Node[]} nodes @returns {Node[]} */
function visible(nodes) {
  return nodes.flatMap((node) => [node, ...(node.children && !folded.has(node.key) ? visible(node.children) : [])]);
}

/**
 * What is looked for, with what stands above and below it.
 * @param {Node[]} nodes
 * @returns {Node[]}
 */
function matching(nodes) {
  if (!wanted) return nodes;
  return nodes.flatMap((node) => {
    if (node.level > 2 && `${node.name} ${node.key} ${node.spoken}`.toLowerCase().includes(wanted)) return node;
    const children = matching(node.children ?? []);
    return children.length > 0 ? { ...node, children } : [];
  });
}

/** Draws the tree. @param {HTMLElement} tree @param {string} place the present address */
export function drawTree(tree, place) {
  const found = matching(model());
  const roots = found.length > 0 ? found : model().map((root) => ({ ...root, children: [], empty: "Nothing found." }));
  const shown = visible(roots);
  byId("find").hidden = store.devices.length < FIND_FROM && !wanted;
  if (!shown.some((node) => node.key === focusKey)) {
    focusKey = (shown.find((node) => node.href === place) ?? shown[0]).key;
  }
  /** @type {{key: string, signature: string, make: () => HTMLElement}[]} */
  const items = [];
  /** @param {Node[]} siblings */
  const add = (siblings) => {
    siblings.forEach((node, index) => {
      const { key, href, name, level, spoken, detail, children } = node;
      const state = [href === place, key === focusKey, children && folded.has(key), index, siblings.length];
      const signature = JSON.stringify([name, level, spoken, detail, state]);
      items.push({ key, signature, make: () => item(node, index, siblings.length, place) });
      if (!children || folded.has(key)) return;
      add(children);
      const { empty } = node;
      if (children.length === 0 && empty) {
        const place = `${key}/empty`;
        items.push({ key: place, signature: empty, make: () => h("li", { class: "node-empty", role: "none", "data-key": place }, empty) });
      }
    });
  };
  add(roots);
  const focused = tree.contains(document.activeElement);
  arrange(tree, items);
  if (focused && !tree.contains(document.activeElement)) focusNode(tree);
}

/** What each element of the tree shows. @type {WeakMap<Element, string>} */
const signatures = new WeakMap();

/**
 * Brings the tree's elements into this state: thousands of devices, of which few change at a time.
 * @param {HTMLElement} tree
 * @param {{key: string, signature: string, make: () => HTMLElement}[]} items
 */
function arrange(tree, items) {
  /** @type {Map<string, Element>} */
  const present = new Map();
  for (const element of tree.children) present.set(element.getAttribute("data-key") ?? "", element);
  let at = tree.firstElementChild;
  for (const { key, signature, make } of items) {
    let element = present.get(key);
    present.delete(key);
    if (!element) element = make();
    else if (signatures.get(element) !== signature) morphNode(element, make());
    signatures.set(element, signature);
    if (element === at) at = at.nextElementSibling;
    else tree.insertBefore(element, at);
  }
  present.forEach((element) => element.remove());
}

/** @param {Node} node @param {number} index @param {number} count @param {string} place */
function item(node, index, count, place) {
  const open = node.children ? !folded.has(node.key) : undefined;
  const twisty = node.children
    ? icon("chevron", "twisty")
    : s("svg", { class: "twisty", "aria-hidden": "true" });
  return h(
    "li",
    {
      class: `node ${node.more ? "two" : ""}`,
      role: "treeitem",
      "data-key": node.key,
      "data-href": node.href,
      "data-testid": node.testid,
      "aria-level": node.level,
      "aria-posinset": index + 1,
      "aria-setsize": count,
      "aria-expanded": open === undefined ? null : String(open),
      "aria-selected": String(node.href === place),
      "aria-label": node.spoken ? `${node.name}, ${node.spoken}` : node.name,
      tabindex: node.key === focusKey ? 0 : -1,
    },
    twisty,
    icon(node.symbol),
    h("span", { class: "node-name", title: node.name }, node.name),
    node.mark?.() ?? h("span", {}),
    node.more && h("span", { class: "node-more" }, node.more()),
  );
}

/** @param {HTMLElement} tree */
function focusNode(tree) {
  /** @type {HTMLElement | null} */ (tree.querySelector(`[data-key="${CSS.escape(focusKey ?? "")}"]`))?.focus();
}

/** Mouse and keyboard. @param {HTMLElement} tree @param {() => string} place */
export function startTree(tree, place) {
  const redraw = () => drawTree(tree, place());
  /** @param {string} key */
  const toggle = (key) => {
    if (!folded.delete(key)) folded.add(key);
    redraw();
  };
  const find = /** @type {HTMLInputElement} */ (byId("find-text"));
  find.addEventListener("input", () => {
    wanted = find.value.trim().toLowerCase();
    redraw();
    const found = visible(matching(model())).filter((node) => !node.children).length;
    if (wanted) announce(`${found} found`);
  });
  find.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "Enter") return;
    event.preventDefault();
    const first = visible(matching(model())).find((node) => node.level > 2);
    focusKey = first?.key ?? focusKey;
    redraw();
    focusNode(tree);
  });
  tree.addEventListener("click", (event) => {
    const target = /** @type {Element} */ (event.target);
    const li = /** @type {HTMLElement | null} */ (target.closest("[role=treeitem]"));
    if (!li) return;
    focusKey = li.dataset.key ?? null;
    if (target.closest(".twisty") && li.hasAttribute("aria-expanded")) return toggle(focusKey ?? "");
    location.hash = li.dataset.href ?? "";
    redraw();
  });
  tree.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const shown = visible(matching(model()));
    const at = shown.findIndex((node) => node.key === focusKey);
    if (at < 0) return;
    const present = shown[at];
    /** @param {Node | undefined} node */
    const go = (node) => {
      if (!node) return;
      focusKey = node.key;
      redraw();
      focusNode(tree);
    };
    const open = present.children && !folded.has(present.key);
    if (event.key.length > 1) typed = "";
    switch (event.key) {
      case "ArrowDown":
        go(shown[at + 1]);
        break;
      case "ArrowUp":
        go(shown[at - 1]);
        break;
      case "ArrowRight":
        if (present.children && !open) toggle(present.key);
        else if (open) go(present.children?.[0]);
        break;
      case "ArrowLeft":
        if (open) toggle(present.key);
        else go(shown.slice(0, at).findLast((node) => node.level < present.level));
        break;
      case "Home":
        go(shown[0]);
        break;
      case "End":
        go(shown.at(-1));
        break;
      case "Enter":
      case " ":
        location.hash = present.href;
        break;
      default: {
        if (event.key.length !== 1) return;
        typed = event.timeStamp - typedAt < 700 ? typed + event.key : event.key;
        typedAt = event.timeStamp;
        const start = typed.toLowerCase();
        const from = typed.length === 1 ? at + 1 : at;
        go([...shown.slice(from), ...shown.slice(0, from)].find((node) => node.name.toLowerCase().startsWith(start)));
      }
    }
    event.preventDefault();
  });
}
