// Dialogs on the browser's own `<dialog>`: it keeps the focus inside and gives it back.

import { h, icon } from "./dom.js";

/** @typedef {import("./dom.js").Child} Child */

let count = 0;

/**
 * Opens a dialog. Its content is a form; `submit` runs on Enter and on the primary button.
 * @param {object} options
 * @param {string} options.title
 * @param {string} [options.testid]
 * @param {Child[]} options.body
 * @param {Child[]} options.foot
 * @param {() => unknown} [options.submit]
 * @param {() => void} [options.closed]
 * @param {string} [options.kind] a class
 */
export function openDialog({ title, testid, body, foot, submit, closed, kind }) {
  count += 1;
  const id = `dialog-${count}`;
  const form = h(
    "form",
    {
      method: "dialog",
      novalidate: true,
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        submit?.();
      },
    },
    h(
      "div",
      { class: "dialog-head" },
      h("h2", { id }, title),
      h("button", { class: "icon-button", type: "button", "aria-label": "Close", onclick: () => dialog.close() }, icon("x")),
    ),
    h("div", { class: "dialog-body" }, body),
    h("div", { class: "dialog-foot" }, foot),
  );
  /** @type {HTMLDialogElement} */
  const dialog = h("dialog", { class: kind, "aria-labelledby": id, "data-testid": testid }, form);
  dialog.addEventListener("close", () => {
    dialog.remove();
    closed?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  const first = /** @type {HTMLElement | null} */ (dialog.querySelector("[autofocus], .dialog-body input, .dialog-body select"));
  first?.focus();
  return dialog;
}

/**
 * A labelled input with room for a hint and an error, told together to screen readers.
 * @param {object} options
 * @param {string} options.label
 * @param {string} options.name
 * @param {string} [options.hint]
 * @param {Record<string, any>} [options.input] attributes
 * @param {HTMLElement} [options.control] instead of an input
 */
export function field({ label, name, hint, input = {}, control }) {
  count += 1;
  const id = `${name}-${count}`;
  const element = /** @type {HTMLInputElement} */ (control ?? h("input", { type: "text", ...input }));
  element.id = id;
  element.setAttribute("name", name);
  element.setAttribute("aria-describedby", `${id}-hint ${id}-error`);
  const error = h("p", { class: "field-error", id: `${id}-error`, role: "alert", hidden: true, "data-testid": `${name}-error` });
  const sign = h("span", { hidden: true }, icon("check"));
  const box = h(
    "div",
    { class: "field" },
    h("label", { for: id }, label),
    h("div", { class: "with-sign" }, element, sign),
    error,
    h("p", { class: "field-hint", id: `${id}-hint` }, hint ?? ""),
  );
  /** @param {string} text nothing clears it */
  const refuse = (text) => {
    error.textContent = text;
    error.hidden = text === "";
    if (text) element.setAttribute("aria-invalid", "true");
    else element.removeAttribute("aria-invalid");
    if (text) sign.hidden = true;
  };
  // Said of what stood there before.
  element.addEventListener("input", () => refuse(""));
  return {
    box,
    element,
    get value() {
      return element.value.trim();
    },
    refuse,
    /** @param {boolean} is */
    good(is) {
      sign.hidden = !is;
    },
  };
}

/**
 * A field for a password that can be looked at: phones make typing blind hard.
 * @param {string} label
 * @param {string} [hint]
 */
export function passwordField(label, hint) {
  const password = field({ label, name: "password", hint, input: { type: "password", autocomplete: "new-password", "data-testid": "device-password" } });
  const show = h("button", { class: "inside-button", type: "button", "aria-pressed": "false", "aria-label": `Show ${label.toLowerCase()}` }, "Show");
  show.onclick = () => {
    const shown = password.element.type === "text";
    password.element.type = shown ? "password" : "text";
    show.setAttribute("aria-pressed", String(!shown));
    show.textContent = shown ? "Show" : "Hide";
  };
  const around = password.element.parentElement;
  around?.classList.add("with-button");
  around?.append(show);
  return password;
}

/** One's own password, asked for before what opens a way in or shows a secret. @param {string} [label] */
export function ownPassword(label = "Your own password") {
  return field({ label, name: "current", hint: "Asked for again because this browser may be unattended.", input: { type: "password", autocomplete: "current-password", "data-testid": "own-password" } });
}

/**
 * Asks before something that cannot be taken back.
 * @param {object} options
 * @param {string} options.title
 * @param {string} options.text
 * @param {string} options.action what the button says
 * @param {() => Promise<void>} options.act may throw: the error is shown in the dialog
 */
export function confirmThen({ title, text, action, act }) {
  const error = h("p", { class: "field-error", role: "alert", hidden: true });
  const go = h("button", { class: "button danger primary", type: "submit", "data-testid": "confirm" }, action);
  const dialog = openDialog({
    title,
    testid: "confirm-dialog",
    body: [h("p", {}, text), error],
    foot: [h("button", { class: "button", type: "button", autofocus: true, onclick: () => dialog.close() }, "Cancel"), go],
    submit: async () => {
      go.disabled = true;
      try {
        await act();
        dialog.close();
      } catch (problem) {
        error.textContent = problem instanceof Error ? problem.message : String(problem);
        error.hidden = false;
        go.disabled = false;
      }
    },
  });
}
