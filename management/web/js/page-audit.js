// The audit log: who did what, when, from where.

import { call, words } from "./api.js";
import { h, icon, morph, toast } from "./dom.js";
import { full } from "./format.js";

/** @typedef {import("./types.js").AuditEntry} AuditEntry */

/** As many as the server gives at once. */
const PAGE = 100;

export class AuditPage {
  /** @param {HTMLElement} into */
  constructor(into) {
    this.into = into;
    this.title = "Audit log";
    /** @type {AuditEntry[]} */
    this.entries = [];
    this.more = true;
    this.load();
  }

  async load() {
    const before = this.entries.at(-1)?.id;
    try {
      /** @type {AuditEntry[]} */
      const page = await call("GET", `/api/v1/audit?limit=${PAGE}${before ? `&before=${before}` : ""}`);
      this.entries.push(...page);
      this.more = page.length === PAGE;
      this.draw();
    } catch (error) {
      toast(words(error), "bad");
    }
  }

  draw() {
    morph(
      this.into,
      h(
        "div",
        { class: "page", "data-key": "audit", "data-testid": "audit-page" },
        h("div", { class: "page-head" }, h("div", { class: "page-title" }, h("h1", {}, "Audit log"))),
        h(
          "div",
          { class: "card scroll-x" },
          h(
            "table",
            { class: "table stack" },
            h("thead", {}, h("tr", {}, h("th", {}, "When"), h("th", {}, "Who"), h("th", {}, "What"), h("th", {}, "To what"), h("th", {}, "From"), h("th", {}, "How it went"))),
            h(
              "tbody",
              {},
              this.entries.map((entry) =>
                h(
                  "tr",
                  { "data-key": String(entry.id) },
                  h("td", { class: "num nowrap" }, full(entry.at)),
                  h("td", {}, h("b", {}, entry.user)),
                  h("td", {}, entry.action.replaceAll("-", " ")),
                  h("td", { class: "mono" }, entry.object),
                  h("td", { class: "mono", "data-head": "from" }, entry.peer),
                  h("td", { class: "muted" }, entry.detail),
                ),
              ),
            ),
          ),
        ),
        this.more && this.entries.length > 0 && h("div", { class: "empty" }, h("button", { class: "button", type: "button", onclick: () => this.load() }, icon("chevron"), "Older entries")),
      ),
    );
  }
}
