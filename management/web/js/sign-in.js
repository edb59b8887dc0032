// The sign-in page.

import { call, ApiError } from "./api.js";
import { byId } from "./dom.js";

const form = /** @type {HTMLFormElement} */ (byId("sign-in"));
const user = /** @type {HTMLInputElement} */ (byId("user"));
const password = /** @type {HTMLInputElement} */ (byId("password"));
const submit = /** @type {HTMLButtonElement} */ (byId("submit"));
const show = byId("show");

show.onclick = () => {
  const shown = password.type === "text";
  password.type = shown ? "password" : "text";
  show.setAttribute("aria-pressed", String(!shown));
  show.textContent = shown ? "Show" : "Hide";
  password.focus();
};

/** @param {HTMLInputElement} input @param {string} text nothing clears it */
function problem(input, text) {
  const place = byId(`${input.id}-error`);
  place.textContent = text;
  place.hidden = text === "";
  if (text) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
}

form.onsubmit = async (event) => {
  event.preventDefault();
  problem(user, user.value.trim() ? "" : "Enter your user name.");
  problem(password, password.value ? "" : "Enter your password.");
  const missing = [user, password].find((input) => input.hasAttribute("aria-invalid"));
  if (missing) return missing.focus();
  submit.disabled = true;
  try {
    await call("POST", "/api/v1/session", { user: user.value.trim(), password: password.value });
    // Back to where the session ended; only a place inside the page can stand after the #.
    location.replace(`/${location.hash}`);
  } catch (error) {
    problem(password, error instanceof ApiError ? error.message : "Signing in failed.");
    password.focus();
    password.select();
  } finally {
    submit.disabled = false;
  }
};
