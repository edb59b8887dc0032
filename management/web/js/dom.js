// Elements, and how a page is brought from one state to the next without losing focus, scroll or
// video: a view is a function that makes its whole tree anew, and `morph` changes the present tree
// into it. No text of ours or of others is ever read as HTML (the server's policy forbids it as well).

/** @typedef {Node | string | number | false | null | undefined} Child */
/** @typedef {Record<string, string | number | boolean | null | undefined | ((event: any) => unknown)>} Attributes */

const SVG = "http://www.w3.org/2000/svg";

/** Handlers are properties, remembered so that `morph` can carry them over. @type {WeakMap<Element, Map<string, Function>>} */
const handlers = new WeakMap();

/**
 * Makes an element. `on…` are handlers, `true` an empty attribute, `false`, `null` and `undefined` none.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Attributes} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") listen(element, name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...nodes(children));
  return element;
}

/**
 * Makes an SVG element.
 * @param {string} tag
 * @param {Record<string, string | number>} [attributes]
 * @param {...Node} children
 */
export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/**
 * A symbol of the page's icon set. Decoration: what it means is said in words beside it.
 * @param {string} name
 * @param {string} [extra]
 */
export function icon(name, extra = "") {
  return s("svg", { class: `icon ${extra}`.trim(), "aria-hidden": "true", focusable: "false" }, s("use", { href: `#i-${name}` }));
}

/** @param {(Child | Child[])[]} children @returns {(Node | string)[]} */
function nodes(children) {
  /** @type {(Node | string)[]} */
  const all = [];
  for (const child of children.flat()) {
    if (child === false || child === null || child === undefined) continue;
    all.push(child instanceof Node ? child : String(child));
  }
  return all;
}

/** @param {Element} element @param {string} name @param {Function} handler */
function listen(element, name, handler) {
  const known = handlers.get(element) ?? new Map();
  known.set(name, handler);
  handlers.set(element, known);
  // @ts-ignore handler properties are not indexable by string
  element[name] = handler;
}

/**
 * Changes what is in `parent` into `wanted`, touching as little as possible. Elements are the same if
 * they have the same tag and `data-key`. What is in an element with `data-keep` is its own business.
 * @param {Element} parent
 * @param {...(Child | Child[])} wanted
 */
export function morph(parent, ...wanted) {
  const fragment = document.createDocumentFragment();
  fragment.append(...nodes(wanted));
  morphChildren(parent, fragment);
}

/** @param {Node} parent @param {Node} wanted */
function morphChildren(parent, wanted) {
  /** @type {Map<string, Element>} */
  const keyed = new Map();
  for (const child of parent.childNodes) {
    const key = keyOf(child);
    if (key) keyed.set(key, /** @type {Element} */ (child));
  }
  let present = parent.firstChild;
  for (const next of [...wanted.childNodes]) {
    const key = keyOf(next);
    const same = key ? keyed.get(key) : undefined;
    if (same) {
      if (same !== present) parent.insertBefore(same, present);
      else present = present.nextSibling;
      morphNode(same, next);
    } else if (present && !keyOf(present) && !key && alike(present, next)) {
      const after = present.nextSibling;
      morphNode(present, next);
      present = after;
    } else {
      parent.insertBefore(next, present);
    }
  }
  while (present) {
    const after = present.nextSibling;
    parent.removeChild(present);
    present = after;
  }
}

/** @param {Node} node */
function keyOf(node) {
  return node instanceof Element ? node.getAttribute("data-key") : null;
}

/** @param {Node} one @param {Node} other */
function alike(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName;
}

/** As `morph`, for one node itself. @param {Node} present @param {Node} wanted */
export function morphNode(present, wanted) {
  if (!(present instanceof Element) || !(wanted instanceof Element)) {
    if (present.nodeValue !== wanted.nodeValue) present.nodeValue = wanted.nodeValue;
    return;
  }
  for (const { name } of [...present.attributes]) {
    // `open` of details and dialogs is the user's.
    if (!wanted.hasAttribute(name) && name !== "open") present.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (present.getAttribute(name) !== value) present.setAttribute(name, value);
  }
  // A tick is a property; the attribute is only what it began with.
  if (present instanceof HTMLInputElement && wanted instanceof HTMLInputElement && present.type === "checkbox") {
    present.checked = wanted.checked;
  }
  const before = handlers.get(present);
  const now = handlers.get(wanted);
  // @ts-ignore handler properties are not indexable by string
  before?.forEach((_, name) => now?.has(name) || (present[name] = null));
  now?.forEach((handler, name) => listen(present, name, handler));
  if (!present.hasAttribute("data-keep")) morphChildren(present, wanted);
}

/**
 * A button that opens a few choices below it.
 * @param {string} text
 * @param {string} testid
 * @param {(false | undefined | null | [symbol: string, text: string, testid: string, act: () => void, kind?: string])[]} choices
 */
export function menu(text, testid, choices) {
  /** @param {Event} event */
  const close = (event) => {
    const details = /** @type {HTMLElement} */ (event.currentTarget).closest("details");
    if (details) details.open = false;
    return details;
  };
  return h(
    "details",
    {
      class: "more",
      "data-key": testid,
      // Elsewhere, or with Escape: it closes.
      onfocusout: (/** @type {FocusEvent} */ event) => {
        const details = /** @type {HTMLDetailsElement} */ (event.currentTarget);
        if (!details.contains(/** @type {Node | null} */ (event.relatedTarget))) details.open = false;
      },
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        if (event.key === "Escape") close(event)?.querySelector("summary")?.focus();
      },
    },
    h("summary", { class: "button", "data-testid": testid }, icon("more"), text),
    h(
      "div",
      { class: "menu-below" },
      choices.map((choice) => {
        if (!choice) return null;
        const [symbol, words, name, act, kind] = choice;
        return h("button", { type: "button", class: kind, "data-key": name, "data-testid": name, onclick: (/** @type {Event} */ event) => { close(event); act(); } }, icon(symbol), words);
      }),
    ),
  );
}

/**
 * The element with this id, which the page is known to have.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return element;
}

/** Says something to screen readers, politely. @param {string} text */
export function announce(text) {
  const region = document.getElementById("announcer");
  if (!region) return;
  // The same words again are news again only if the region was empty between.
  region.textContent = "";
  requestAnimationFrame(() => (region.textContent = text));
}

/** Where messages stand. @type {HTMLElement | null} */
let toasts = null;

/**
 * Shows a message for a moment.
 * @param {string} text
 * @param {"info" | "good" | "bad"} [kind]
 */
export function toast(text, kind = "info") {
  const symbol = { info: "info", good: "check", bad: "alert" }[kind];
  const close = h("button", { class: "icon-button", type: "button", "aria-label": "Dismiss" }, icon("x"));
  const box = h("div", { class: `toast toast-${kind}`, role: kind === "bad" ? "alert" : "status" }, icon(symbol), h("span", {}, text), close);
  close.onclick = () => box.remove();
  toasts ??= byId("toasts");
  // They cover what they stand on: the older of what went well give way.
  const others = [...toasts.querySelectorAll(".toast:not(.toast-bad)")];
  others.slice(0, -1).forEach((older) => older.remove());
  toasts.append(box);
  // What is in full screen hides everything else.
  const ground = document.fullscreenElement ?? document.body;
  if (toasts.parentElement !== ground) ground.append(toasts);
  // What went wrong stays until it was read.
  if (kind === "bad") return;
  setTimeout(() => box.classList.add("leaving"), 5200);
  setTimeout(() => box.remove(), 5600);
}

/** Colour scheme: as the system has it, unless the user chose one. */
export const theme = {
  /** @returns {"light" | "dark" | "system"} */
  get() {
    const chosen = localStorage.getItem("homing-theme");
    return chosen === "light" || chosen === "dark" ? chosen : "system";
  },
  /** @param {"light" | "dark" | "system"} choice */
  set(choice) {
    if (choice === "system") localStorage.removeItem("homing-theme");
    else localStorage.setItem("homing-theme", choice);
    theme.apply();
  },
  apply() {
    const choice = theme.get();
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    document.documentElement.dataset.theme = choice === "system" ? system : choice;
    dispatchEvent(new Event("homing-theme"));
  },
};
