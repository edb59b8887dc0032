// Registering a list of devices (step 1): a file or pasted text becomes a table, what is wrong is told line by line
// before anything is sent, and then each line is registered, a few at a time.
//
// Invariant: nothing leaves the browser before Register is pressed; the OAK and the password of a line are forgotten as
// soon as it is registered, and all of them when the page is left.

import { ApiError, call, words } from "./api.js";
import { check, readList } from "./csv.js";
import { field, openDialog, passwordField } from "./dialog.js";
import { FIELD_OF } from "./dialogs.js";
import { announce, h, icon, morph, toast } from "./dom.js";
import { plural } from "./format.js";
import { crumbs } from "./page-device.js";
import { store } from "./store.js";
import { markOf } from "./tree.js";

/** @typedef {import("./csv.js").Row & {state: "new" | "sent" | "registered" | "kept" | "same" | "refused", code?: string, message?: string}} Item */

/** Lines on their way at once: the dispatcher checks each one for a few seconds at most. */
const AT_ONCE = 4;

/** A list of more than this is not one that somebody meant to choose. */
const LONGEST_BYTES = 4 * 1024 * 1024;

const EXAMPLE = "serial;oak;user;password;name\n00408C702009;0123-4567-89AB;root;secret;Front door";

/** How a line is shown. @type {Record<string, {mark: string, word: string}>} */
const MARKS = {
  new: { mark: "none", word: "Ready" },
  fault: { mark: "red", word: "To correct" },
  sent: { mark: "yellow", word: "Registering…" },
  registered: { mark: "green", word: "Registered" },
  kept: { mark: "green", word: "Kept" },
  same: { mark: "green", word: "Was registered" },
  refused: { mark: "red", word: "Refused" },
};

export class ListPage {
  /** @param {HTMLElement} into */
  constructor(into) {
    this.into = into;
    this.title = "Register a list";
    /** @type {Item[]} */
    this.items = [];
    this.source = "";
    this.problem = "";
    this.running = false;
    this.ended = false;
    this.user = field({ label: "User, where the list names none", name: "list-user", input: { value: "root", autocomplete: "off", autocapitalize: "none", spellcheck: "false" } });
    this.password = passwordField("Password, where the list names none");
    this.server = field({ label: "Tunnel server, where the list names none", name: "list-server", control: h("select", {}) });
    this.paste = h("textarea", { rows: 5, spellcheck: "false", autocomplete: "off", class: "mono paste", placeholder: EXAMPLE, "aria-label": "The list as text", "data-testid": "list-paste" });
    /** @type {HTMLInputElement} */
    this.file = h("input", { type: "file", accept: ".csv,.txt,.tsv,text/csv,text/plain", class: "sr", id: "list-file", "data-testid": "list-file" });
    this.file.onchange = () => this.choose(this.file.files?.[0]);
    // What is typed into is made once; only what is told changes.
    this.problems = h("div", {});
    this.choice = this.makeChoice();
    this.preview = h("section", { class: "card", hidden: true });
    into.replaceChildren(
      h(
        "div",
        { class: "page", "data-testid": "list-page" },
        h("div", { class: "page-head" }, h("div", { class: "page-title" }, crumbs([["#/services", "Remote connect services"]]), h("h1", {}, "Register a list"))),
        this.problems,
        this.choice,
        this.preview,
      ),
    );
  }

  /** What is not registered yet is forgotten, and what is on its way goes on to its end. */
  end() {
    this.ended = true;
    this.items = [];
    this.paste.value = "";
    this.password.element.value = "";
  }

  /** @param {File | null | undefined} file */
  async choose(file) {
    if (!file) return;
    if (file.size > LONGEST_BYTES) {
      this.problem = `${file.name} is larger than ${LONGEST_BYTES / 1024 / 1024} MB.`;
      return this.draw();
    }
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      this.read(text, file.name);
    } catch (error) {
      this.problem = error instanceof TypeError ? `${file.name} is not text in UTF-8. Save it as “CSV UTF-8”.` : words(error);
      this.draw();
    }
    this.file.value = "";
  }

  /** @param {string} text @param {string} source */
  read(text, source) {
    this.problem = "";
    try {
      const rows = readList(text, { user: this.user.value, password: this.password.element.value });
      if (rows.length === 0) throw new Error(`${source} holds no device.`);
      this.items = rows.map((row) => ({ ...row, state: store.device(row.serial) ? "same" : "new" }));
      this.items.filter((item) => item.state === "same").forEach(forget);
      this.source = source;
      this.paste.value = "";
      const wrong = this.wrong().length;
      announce(`${plural(rows.length, "line")}, ${wrong === 0 ? "nothing to correct" : `${wrong} to correct`}`);
    } catch (error) {
      this.problem = words(error);
    }
    this.draw();
    /** @type {HTMLElement | null} */ (this.into.querySelector(this.problem ? "[role=alert]" : "[data-testid=list-register]"))?.focus();
  }

  wrong() {
    return this.items.filter((item) => item.fault && item.state === "new");
  }

  waiting() {
    return this.items.filter((item) => !item.fault && (item.state === "new" || item.state === "refused"));
  }

  async register() {
    this.running = true;
    this.problem = "";
    // Of this round: a line that is refused now waits for the next one.
    const waiting = this.waiting();
    const worker = async () => {
      for (let item = waiting.shift(); item && !this.ended; item = waiting.shift()) {
        if (!(await this.one(item))) waiting.length = 0;
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
    this.running = false;
    if (this.ended) return;
    this.draw();
    const left = this.items.filter((item) => !isDone(item)).length;
    if (left === 0) toast(`${plural(this.items.length, "device")} registered.`, "good");
    announce(left === 0 ? "All are registered" : `${left} are not registered`);
  }

  /** Whether it is worth going on with the next. @param {Item} item */
  async one(item) {
    item.state = "sent";
    item.message = item.code = undefined;
    this.draw();
    try {
      const device = await call("POST", "/api/v1/devices", {
        tunnel_server: item.server || (store.tunnelServers.length > 1 ? this.server.element.value : undefined),
        serial: item.serial,
        oak: item.oak,
        user: item.user,
        password: item.password,
        name: item.name,
        description: item.description,
      });
      item.state = device.relay === "pending" ? "kept" : "registered";
      if (item.state === "kept") item.message = "Relayed as soon as the dispatcher can be reached.";
      forget(item);
    } catch (error) {
      const status = error instanceof ApiError ? error.status : 0;
      item.code = error instanceof ApiError ? error.code : undefined;
      if (item.code === "already-registered") {
        item.state = "same";
        forget(item);
        return true;
      }
      // Without a server or a session the others would not fare better.
      const lost = status === 0 || status === 401;
      item.state = lost ? "new" : "refused";
      if (lost) this.problem = words(error);
      else item.message = words(error);
      return !lost;
    }
    return true;
  }

  draw() {
    if (this.ended) return;
    const { items, problem } = this;
    const servers = store.tunnelServers;
    morph(this.server.element, servers.map((server) => h("option", { value: server.name }, server.name)));
    this.server.box.hidden = servers.length < 2;
    morph(this.problems, problem && h("div", { class: "notice bad", role: "alert", tabindex: -1, "data-testid": "list-problem" }, icon("alert"), h("div", { class: "notice-body" }, problem)));
    this.choice.hidden = items.length > 0;
    this.preview.hidden = items.length === 0;
    morph(this.preview, items.length > 0 && this.table());
  }

  makeChoice() {
    return h(
      "section",
      {
        class: "card",
        ondragover: (/** @type {DragEvent} */ event) => event.preventDefault(),
        ondrop: (/** @type {DragEvent} */ event) => {
          event.preventDefault();
          this.choose(event.dataTransfer?.files[0]);
        },
      },
      h("div", { class: "card-head" }, h("h2", {}, "The list")),
      h(
        "div",
        { class: "card-body" },
        h("p", { class: "muted below-text" }, "A spreadsheet saved as CSV: serial number and OAK from the labels; user, password, name, description and tunnel server where you have them. A heading says which column is which. The file stays in this browser until you press Register."),
        h("div", { class: "columns" }, this.user.box, this.password.box),
        this.server.box,
        h("div", { class: "actions" }, this.file, h("label", { class: "button primary file-button", for: "list-file" }, icon("list"), "Choose a file")),
        h("p", { class: "under" }, "Or paste it"),
        this.paste,
        h("div", { class: "actions below-field" }, h("button", { class: "button", type: "button", "data-testid": "list-preview", onclick: () => this.read(this.paste.value, "What was pasted") }, "Preview")),
      ),
    );
  }

  /** The table, with what can be done. */
  table() {
    const { items } = this;
    const wrong = this.wrong().length;
    const waiting = this.waiting().length;
    const done = items.filter(isDone).length;
    const refused = items.filter((item) => item.state === "refused").length;
    const counts = [plural(items.length, "line"), done > 0 && `${done} registered`, wrong > 0 && `${wrong} to correct`, refused > 0 && `${refused} refused`].filter(Boolean).join(", ");
    const again = refused > 0 && waiting === refused;
    return [
      h(
        "div",
        { class: "card-head wrap" },
        h("h2", {}, this.source),
        h("span", { class: "muted num", role: "status", "data-testid": "list-summary" }, counts),
        h(
          "span",
          { class: "actions" },
          h("button", { class: "button small", type: "button", disabled: this.running, onclick: () => this.forgetAll() }, done === items.length ? "Another list" : "Discard"),
          done < items.length &&
            h("button", { class: "button small primary", type: "button", disabled: this.running || waiting === 0, "data-testid": "list-register", onclick: () => this.register() }, this.running ? "Registering…" : again ? `Try ${refused} again` : `Register ${waiting}`),
        ),
      ),
      h(
        "div",
        { class: "scroll-x" },
        h(
          "table",
          { class: "table stack list-table" },
          h("thead", {}, h("tr", {}, ["Line", "Serial number", "OAK", "Name", "User", "Result", ""].map((head) => h("th", {}, head || h("span", { class: "sr" }, "What can be done"))))),
          h("tbody", {}, items.map((item) => this.line(item))),
        ),
      ),
    ];
  }

  /** @param {Item} item */
  line(item) {
    const shown = item.fault && item.state === "new" ? MARKS.fault : MARKS[item.state];
    const message = item.fault && item.state === "new" ? item.fault.message : item.message;
    /** @param {string} column */
    const cell = (column) => (item.fault?.column === column && item.state === "new" ? "wrong" : "");
    const open = !this.running && (item.state === "refused" || item.state === "new");
    return h(
      "tr",
      { "data-key": String(item.line), "data-testid": `list-line-${item.line}` },
      h("td", { class: "num", "data-head": "Line" }, item.line),
      h("td", { class: `mono ${cell("serial")}` }, isDone(item) ? h("a", { class: "row-link", href: `#/device/${item.serial}` }, item.serial) : item.serial || "–"),
      h("td", { class: `mono ${cell("oak")}` }, isDone(item) ? "" : item.oak || "–"),
      h("td", { class: cell("name") }, item.name),
      h("td", { class: cell("user") || cell("password"), "data-head": isDone(item) ? null : "user" }, isDone(item) ? "" : item.user || "–"),
      h("td", { class: "result" }, h("span", { class: "with-mark" }, markOf(shown), shown.word), message && h("span", { class: "result-text" }, message)),
      h("td", { class: "end" }, open && h("button", { class: "button small", type: "button", "aria-label": `Correct line ${item.line}`, "data-testid": `list-correct-${item.line}`, onclick: () => this.correct(item) }, icon("edit"), h("span", { class: "spare" }, "Correct"))),
    );
  }

  /** One line in a dialog; what is there is checked as in the list. @param {Item} item */
  correct(item) {
    const code = { class: "code", autocomplete: "off", autocapitalize: "characters", spellcheck: "false" };
    const serial = field({ label: "Serial number", name: "serial", input: { ...code, value: item.serial, "data-testid": "line-serial" } });
    const oak = field({ label: "Owner authentication key (OAK)", name: "oak", input: { ...code, value: item.oak, "data-testid": "line-oak" } });
    const user = field({ label: "Device's user", name: "user", input: { autocomplete: "off", autocapitalize: "none", spellcheck: "false", value: item.user } });
    const password = passwordField("Device's password");
    password.element.value = item.password;
    const name = field({ label: "Name", name: "name", input: { autocomplete: "off", value: item.name } });
    const description = field({ label: "Description", name: "description", input: { autocomplete: "off", value: item.description } });
    /** @type {Record<string, ReturnType<typeof field>>} */
    const fields = { serial, oak, user, password, name, description };
    const told = item.fault?.column ?? FIELD_OF[item.code ?? ""];
    const leave = h("button", { class: "button danger", type: "button", onclick: () => { this.items = this.items.filter((other) => other !== item); check(this.items.filter((other) => !isDone(other))); dialog.close(); } }, "Leave it out");
    const dialog = openDialog({
      title: `Line ${item.line}`,
      testid: "line-dialog",
      body: [serial.box, oak.box, h("div", { class: "columns" }, user.box, password.box), name.box, description.box],
      foot: [leave, h("button", { class: "button primary", type: "submit", "data-testid": "line-save" }, "Save")],
      submit: () => {
        Object.assign(item, { serial: serial.value, oak: oak.value, user: user.value, password: password.element.value, name: name.value, description: description.value, state: "new", code: undefined, message: undefined });
        check(this.items.filter((other) => !isDone(other)));
        Object.values(fields).forEach((field) => field.refuse(""));
        const fault = item.fault;
        if (!fault) return dialog.close();
        fields[fault.column]?.refuse(fault.message);
        fields[fault.column]?.element.focus();
      },
      closed: () => {
        password.element.value = oak.element.value = "";
        this.draw();
      },
    });
    if (told && fields[told]) {
      fields[told].refuse(item.fault?.message ?? item.message ?? "");
      fields[told].element.focus();
    }
  }

  forgetAll() {
    this.items = [];
    this.problem = "";
    this.draw();
  }
}

/** @param {Item} item */
function isDone(item) {
  return item.state === "registered" || item.state === "kept" || item.state === "same";
}

/** @param {Item} item */
function forget(item) {
  item.oak = item.password = "";
  item.fault = undefined;
}
