// Certificates that end, and what has to be done about them: a banner on every page, a table with the tunnel servers.

import { call } from "./api.js";
import { byId, h, icon, morph } from "./dom.js";
import { full } from "./format.js";
import { markOf } from "./tree.js";

/** @typedef {import("./types.js").Certificate} Certificate */

/** They end in days, and are replaced at a restart. */
const LOOK_AGAIN_MS = 10 * 60_000;

class Certificates {
  constructor() {
    /** @type {Certificate[]} */
    this.all = [];
    /** @type {Set<() => void>} */
    this.listeners = new Set();
  }

  watch() {
    this.look();
    setInterval(() => document.hidden || this.look(), LOOK_AGAIN_MS);
  }

  async look() {
    try {
      this.all = await call("GET", "/api/v1/certificates");
    } catch {
      // The banner of the server that is away stands already.
      return;
    }
    this.draw();
    this.listeners.forEach((listener) => listener());
  }

  draw() {
    const urgent = this.all.filter((certificate) => certificate.advice);
    const banner = byId("certificates");
    banner.hidden = urgent.length === 0;
    if (urgent.length === 0) return;
    const [first] = urgent;
    const ended = Date.parse(first.expires) < Date.now();
    const more = urgent.length > 1 ? ` And ${urgent.length - 1} more.` : "";
    morph(
      banner,
      icon("alert"),
      h("span", {}, h("b", {}, `${capital(first.server)}: its ${first.what} ${ended ? "ended" : "ends"} on ${full(first.expires)}. `), h("span", { class: "advice" }, first.advice), more),
      h("a", { href: "#/services" }, "What to do"),
    );
  }
}

export const certificates = new Certificates();

/** @param {string} text */
function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** All that are known of. */
export function certificateCard() {
  if (certificates.all.length === 0) return null;
  return h(
    "section",
    { class: "card", "data-key": "certificates", "data-testid": "certificate-card" },
    h("div", { class: "card-head" }, h("h2", {}, "Certificates")),
    h(
      "table",
      { class: "table stack" },
      h("thead", {}, h("tr", {}, ["Of", "Certificate", "Ends", "Renewed", "What to do"].map((head) => h("th", {}, head)))),
      h(
        "tbody",
        {},
        certificates.all.map((certificate) =>
          h(
            "tr",
            { "data-key": `${certificate.server}/${certificate.what}` },
            h("td", { class: "first" }, h("span", { class: "with-mark" }, markOf({ mark: certificate.advice ? "red" : "green", word: "" }), capital(certificate.server))),
            h("td", {}, capital(certificate.what)),
            h("td", { class: "num nowrap", "data-head": "Ends" }, full(certificate.expires)),
            h("td", { "data-head": "Renewed" }, certificate.renews ? "by itself" : "by you"),
            h("td", { class: certificate.advice ? "" : "muted" }, certificate.advice ?? "Nothing"),
          ),
        ),
      ),
    ),
  );
}
