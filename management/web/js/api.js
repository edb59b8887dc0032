// Calls of the JSON API, and what its refusals mean here.

import { field, openDialog } from "./dialog.js";
import { h } from "./dom.js";
import { sentence } from "./format.js";

/** @typedef {import("./types.js").Problem} Problem */

/** A refusal, with the server's own words for people. */
export class ApiError extends Error {
  /** @param {number} status @param {Problem} problem */
  constructor(status, problem) {
    super(sentence(problem.message));
    this.status = status;
    this.code = problem.code;
    this.step = problem.step;
  }
}

/**
 * @param {string} method
 * @param {string} path
 * @param {unknown} [body]
 * @returns {Promise<any>} the answer's JSON, or `undefined` where there is none
 */
export async function call(method, path, body) {
  /** @type {RequestInit} */
  const init = { method, headers: { accept: "application/json" } };
  if (body !== undefined) {
    init.headers = { ...init.headers, "content-type": "application/json" };
    init.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, init);
  } catch {
    throw new ApiError(0, { code: "unreachable", message: "The management server cannot be reached. Check the network, and whether it runs." });
  }
  if (response.ok) return response.status === 204 ? undefined : response.json();
  if (response.status === 401 && who && !(method === "POST" && path === SESSION) && (await signInAgain())) return call(method, path, body);
  throw await refusal(response);
}

/** The error that a refused answer is. @param {Response} response */
export async function refusal(response) {
  /** @type {Problem} */
  let problem = { code: "unexpected", message: `The server answered ${response.status}.` };
  try {
    problem = (await response.json()).error ?? problem;
  } catch {
    // Not of this API: a proxy between us, perhaps. The status is what is known.
  }
  if (response.status === 401 && who) signInAgain();
  return new ApiError(response.status, problem);
}

const SESSION = "/api/v1/session";

/** Who is signed in; none on the sign-in page. @type {string | null} */
let who = null;

/** @param {string} user */
export function signedInAs(user) {
  who = user;
}

/** The dialog that is open. @type {Promise<boolean> | null} */
let asking = null;

/**
 * The session has ended: asks for the password on top of the page, so that nothing typed and no place is lost.
 * @returns {Promise<boolean>} whether there is a session again
 */
export function signInAgain() {
  asking ??= askForPassword().finally(() => (asking = null));
  return asking;
}

/** @returns {Promise<boolean>} */
function askForPassword() {
  return new Promise((resolve) => {
    const user = who ?? "";
    const password = field({ label: `Password of ${user}`, name: "password", input: { type: "password", autocomplete: "current-password", autofocus: true, "data-testid": "again-password" } });
    const submit = h("button", { class: "button primary", type: "submit", "data-testid": "again-submit" }, "Sign in");
    const dialog = openDialog({
      title: "Your session has ended",
      testid: "again-dialog",
      kind: "veiled",
      body: [
        h("p", { class: "muted" }, "Sign in to go on where you were. What you have typed is kept."),
        // For password managers.
        h("input", { type: "text", name: "user", autocomplete: "username", value: user, readonly: true, hidden: true }),
        password.box,
      ],
      foot: [h("button", { class: "button", type: "button", onclick: () => location.assign(`/sign-in${location.hash}`) }, "Somebody else"), submit],
      submit: async () => {
        password.refuse(password.element.value ? "" : "Enter your password.");
        if (!password.element.value) return password.element.focus();
        submit.disabled = true;
        try {
          await call("POST", SESSION, { user, password: password.element.value });
          resolve(true);
          dialog.close();
        } catch (error) {
          password.refuse(words(error));
          password.element.select();
          submit.disabled = false;
        }
      },
      closed: () => resolve(false),
    });
  });
}

/** @param {unknown} error */
export function words(error) {
  return error instanceof Error ? error.message : String(error);
}
