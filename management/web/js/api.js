// Calls of the JSON API, and what its refusals mean here.

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
  if (response.status === 401 && !location.pathname.startsWith("/sign-in")) signInAgain();
  return new ApiError(response.status, problem);
}

/** The session has ended: sign in, and come back to the same place. */
export function signInAgain() {
  location.assign(`/sign-in${location.hash}`);
}

/** @param {unknown} error */
export function words(error) {
  return error instanceof Error ? error.message : String(error);
}
