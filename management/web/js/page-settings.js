// Users and access: one's password, sessions and API tokens, and who else may sign in.

import { call, words } from "./api.js";
import { confirmThen, field, openDialog, ownPassword } from "./dialog.js";
import { h, icon, morph, theme, toast } from "./dom.js";
import { full, sinceThen } from "./format.js";

/** @typedef {import("./types.js").User} User */
/** @typedef {import("./types.js").Token} Token */
/** @typedef {import("./types.js").Session} Session */

export class SettingsPage {
  /** @param {HTMLElement} into @param {import("./types.js").Whoami} me */
  constructor(into, me) {
    this.into = into;
    this.me = me;
    this.title = "Users and access";
    /** @type {{users: User[], tokens: Token[], sessions: Session[]}} */
    this.all = { users: [], tokens: [], sessions: [] };
    this.load();
  }

  async load() {
    try {
      const [users, tokens, sessions] = await Promise.all(["users", "tokens", "sessions"].map((what) => call("GET", `/api/v1/${what}`)));
      this.all = { users, tokens, sessions };
      this.draw();
    } catch (error) {
      toast(words(error), "bad");
    }
  }

  draw() {
    const { users, tokens, sessions } = this.all;
    morph(
      this.into,
      h(
        "div",
        { class: "page", "data-key": "settings", "data-testid": "settings-page" },
        h("div", { class: "page-head" }, h("div", { class: "page-title" }, h("h1", {}, "Users and access")), h("div", { class: "actions" }, h("a", { class: "button", href: "#/audit" }, icon("list"), "Audit log"))),
        section(
          "Users",
          h("button", { class: "button small", type: "button", onclick: () => this.addUser() }, icon("plus"), "Add user"),
          ["Name", "Last signed in", ""],
          users.map((user) => ({
            key: user.id,
            cells: [
              h("span", {}, h("b", {}, user.name), user.id === this.me.id ? h("span", { class: "muted" }, " (you)") : ""),
              h("span", { class: "num" }, user.signed_in ? full(user.signed_in) : "never"),
              h(
                "span",
                { class: "actions end" },
                h("button", { class: "button small", type: "button", onclick: () => this.setPassword(user) }, icon("key"), "Set password"),
                user.id !== this.me.id && h("button", { class: "button small danger", type: "button", "aria-label": `Remove ${user.name}`, onclick: () => this.removeUser(user) }, icon("trash")),
              ),
            ],
          })),
          "",
        ),
        section(
          "Your API tokens",
          h("button", { class: "button small", type: "button", onclick: () => this.addToken() }, icon("plus"), "Make token"),
          ["For", "Made", "Last used", ""],
          tokens.map((token) => ({
            key: token.id,
            cells: [
              h("b", {}, token.name),
              full(token.created),
              token.used ? `${sinceThen(token.used)} ago` : "never",
              h("span", { class: "actions end" }, h("button", { class: "button small danger", type: "button", "aria-label": `Withdraw ${token.name}`, onclick: () => this.remove(`Withdraw ${token.name}?`, "Whatever uses this token is refused from now on.", `/api/v1/tokens/${token.id}`) }, icon("trash"))),
            ],
          })),
          "None. Scripts send a token as “Authorization: Bearer …”; what they can ask is in the API description.",
        ),
        section(
          "Your sessions",
          null,
          ["From", "Browser", "Last used", ""],
          sessions.map((session) => ({
            key: session.id,
            cells: [
              h("span", { class: "mono" }, session.peer),
              browser(session.browser),
              session.present ? "now, this one" : `${sinceThen(session.used)} ago`,
              h("span", { class: "actions end" }, !session.present && h("button", { class: "button small", type: "button", onclick: () => this.remove("End this session?", "Whoever uses it has to sign in again.", `/api/v1/sessions/${session.id}`) }, "End")),
            ],
          })),
          "",
        ),
        h(
          "section",
          { class: "card" },
          h("div", { class: "card-head" }, h("h2", {}, "Colours"), this.themes()),
          h("div", { class: "card-body muted" }, "Kept in this browser."),
        ),
        h("p", { class: "field-hint" }, `Homing ${this.me.version}`),
      ),
    );
  }

  themes() {
    const choices = /** @type {const} */ ([["system", "As the system"], ["light", "Light"], ["dark", "Dark"]]);
    return h(
      "div",
      { class: "segmented", role: "group", "aria-label": "Colours" },
      choices.map(([choice, text]) => h("button", { type: "button", "aria-pressed": String(theme.get() === choice), onclick: () => { theme.set(choice); this.draw(); } }, text)),
    );
  }

  addUser() {
    const name = field({ label: "User name", name: "name", input: { autocomplete: "off", autocapitalize: "none", maxlength: 64, autofocus: true } });
    const password = field({ label: "Password", name: "password", hint: "At least 10 characters.", input: { type: "password", autocomplete: "new-password" } });
    const current = ownPassword();
    this.form("Add user", "Add", [name, password, current], async () => {
      await call("POST", "/api/v1/users", { name: name.value, password: password.element.value, current: current.element.value });
    });
  }

  /** @param {User} user */
  setPassword(user) {
    const current = ownPassword(user.id === this.me.id ? "Present password" : undefined);
    const password = field({ label: "New password", name: "password", hint: "At least 10 characters. The user's other sessions end.", input: { type: "password", autocomplete: "new-password" } });
    this.form(`Password of ${user.name}`, "Set password", [password, current], async () => {
      await call("PUT", `/api/v1/users/${user.id}/password`, { password: password.element.value, current: current.element.value });
      toast("The password is set.", "good");
    });
  }

  /** @param {User} user */
  removeUser(user) {
    const current = ownPassword();
    this.form(`Remove ${user.name}?`, "Remove", [current], async () => {
      await call("DELETE", `/api/v1/users/${user.id}`, { current: current.element.value });
      toast(`${user.name} is removed, with all sessions and API tokens.`, "good");
    });
  }

  addToken() {
    const name = field({ label: "What is it for?", name: "name", input: { maxlength: 64, autofocus: true, placeholder: "Nightly export" } });
    const current = ownPassword();
    this.form("Make API token", "Make", [name, current], async () => {
      /** @type {Token} */
      const token = await call("POST", "/api/v1/tokens", { name: name.value, current: current.element.value });
      const copy = h("button", { class: "button", type: "button", onclick: async () => { await navigator.clipboard.writeText(token.token ?? ""); copy.lastChild?.replaceWith("Copied"); } }, icon("copy"), "Copy");
      const dialog = openDialog({
        title: `Token “${token.name}”`,
        body: [h("p", {}, "It is shown this once. Keep it where the script can read it and others cannot."), h("div", { class: "secret-once" }, h("code", {}, token.token), copy)],
        foot: [h("button", { class: "button primary", type: "submit" }, "I have kept it")],
        submit: () => dialog.close(),
      });
    });
  }

  /**
   * @param {string} title
   * @param {string} action
   * @param {ReturnType<typeof field>[]} fields the last one is one's own password
   * @param {() => Promise<void>} act
   */
  form(title, action, fields, act) {
    const go = h("button", { class: "button primary", type: "submit" }, action);
    const dialog = openDialog({
      title,
      body: fields.map((field) => field.box),
      foot: [h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel"), go],
      submit: async () => {
        go.disabled = true;
        try {
          await act();
          dialog.close();
          this.load();
        } catch (error) {
          const code = /** @type {{code?: string}} */ (error).code;
          // One's own password is asked for last; what else is refused is what was asked for before it, or the name.
          const last = fields.length - 1;
          const place = fields[code === "taken" ? 0 : code === "wrong-password" || code === "too-many-attempts" ? last : Math.max(0, last - 1)];
          fields.forEach((field) => field.refuse(""));
          place.refuse(words(error));
          place.element.focus();
          go.disabled = false;
        }
      },
    });
  }

  /** @param {string} title @param {string} text @param {string} path */
  remove(title, text, path) {
    confirmThen({ title, text, action: "Go ahead", act: async () => { await call("DELETE", path); this.load(); } });
  }
}

/**
 * @param {string} title
 * @param {import("./dom.js").Child} action
 * @param {string[]} heads
 * @param {{key: number, cells: import("./dom.js").Child[]}[]} rows
 * @param {string} empty
 */
function section(title, action, heads, rows, empty) {
  return h(
    "section",
    { class: "card", "data-key": title },
    h("div", { class: "card-head" }, h("h2", {}, title), action),
    rows.length === 0
      ? h("div", { class: "card-body muted" }, empty)
      : h(
          "div",
          { class: "scroll-x" },
          h(
            "table",
            { class: "table stack" },
            h("thead", {}, h("tr", {}, heads.map((head) => h("th", {}, head || h("span", { class: "sr" }, "What can be done"))))),
            h("tbody", {}, rows.map((row) => h("tr", { "data-key": String(row.key) }, row.cells.map((cell, index) => h("td", { class: index === row.cells.length - 1 ? "end" : index === 0 ? "first" : "", "data-head": index > 0 && heads[index] ? heads[index] : null }, cell))))),
          ),
        ),
  );
}

/** The browser in a user agent's long name. @param {string} agent */
function browser(agent) {
  const name = agent.match(/Edg|Firefox|Chrome|Safari/)?.[0] ?? "Something else";
  const system = agent.match(/Android|iPhone|iPad|Windows|Mac OS X|Linux/)?.[0];
  return system ? `${name === "Edg" ? "Edge" : name}, ${system}` : name;
}
