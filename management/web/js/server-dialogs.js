// Tunnel servers: add, edit, rename, remove, refresh; and the test, which says what is wrong before anything is saved.

import { ApiError, call, words } from "./api.js";
import { confirmThen, field, openDialog, passwordField } from "./dialog.js";
import { h, icon, toast } from "./dom.js";
import { plural } from "./format.js";
import { store } from "./store.js";

/** @typedef {import("./types.js").TunnelServer} TunnelServer */
/** @typedef {import("./types.js").Tested} Tested */

/** @param {string} name */
const path = (name) => `/api/v1/tunnel-servers/${encodeURIComponent(name)}`;

/** Adds a tunnel server, or edits one. @param {TunnelServer} [server] */
export function editServer(server) {
  const name = field({ label: "Name", name: "name", input: { value: server?.name ?? "", maxlength: 64, autocomplete: "off", "data-testid": "server-name" } });
  const description = field({ label: "Description", name: "description", input: { value: server?.description ?? "", maxlength: 256, autocomplete: "off" } });
  const internal = field({
    label: "Internal address",
    name: "url",
    hint: "Where this server reaches it: https://10.1.2.3:8081; http:// on this machine alone.",
    input: { value: server?.url ?? "https://", inputmode: "url", autocomplete: "off", autocapitalize: "none", spellcheck: "false", "data-testid": "server-url" },
  });
  const external = field({
    label: "External address",
    name: "external",
    hint: "What devices dial: the public address and port of your Internet router. Left empty, the tunnel server's own word counts.",
    input: { value: server?.external_address ?? "", placeholder: "sts.example.com:8443", inputmode: "url", autocomplete: "off", autocapitalize: "none", spellcheck: "false", "data-testid": "server-external" },
  });
  const uses = /** @type {HTMLInputElement} */ (h("input", { type: "checkbox", checked: server === undefined || server.user !== "", "data-testid": "server-uses-credentials" }));
  const user = field({ label: "User name", name: "user", input: { value: server?.user ?? "vms", autocomplete: "off", autocapitalize: "none", spellcheck: "false", "data-testid": "server-user" } });
  const password = passwordField("Password", server?.user ? "Left empty, the present one is kept." : "");
  password.element.setAttribute("data-testid", "server-password");
  const credentials = h("div", {}, user.box, password.box);
  const showCredentials = () => (credentials.hidden = !uses.checked);
  uses.onchange = showCredentials;
  showCredentials();

  /** What is trusted from now on; none: as before. @type {string | undefined} */
  let anchor;
  const result = h("div", { role: "status", "aria-live": "polite", "data-testid": "server-tested" });

  const entered = () => ({
    name: name.value,
    description: description.value,
    url: internal.value,
    external_address: external.value,
    user: uses.checked ? user.value : "",
    password: uses.checked && password.element.value ? password.element.value : undefined,
    trust_anchor: anchor,
  });

  const testing = h("button", { class: "button", type: "button", "data-testid": "server-test" }, icon("check"), "Test");
  testing.onclick = async () => {
    testing.disabled = true;
    result.replaceChildren(h("p", { class: "muted" }, "Testing…"));
    try {
      const server = { ...entered(), name: name.value || "new" };
      show(await call("POST", "/api/v1/tunnel-servers/test", { server, of: known }));
    } catch (error) {
      result.replaceChildren(h("div", { class: "notice bad" }, icon("alert"), h("div", { class: "notice-body" }, h("p", {}, words(error)))));
    } finally {
      testing.disabled = false;
      result.scrollIntoView({ block: "nearest" });
    }
  };

  /** @param {Tested} tested */
  function show(tested) {
    const places = { "bad-address": internal, "unknown-host": internal, refused: internal, "https-only": internal, "wrong-credentials": password, "credentials-wanted": user, "other-external-address": external };
    [internal, external, user, password].forEach((field) => field.refuse(""));
    const place = places[/** @type {keyof typeof places} */ (tested.code)];
    place?.element.setAttribute("aria-invalid", "true");
    const head = tested.ok ? "It works" : (HEADS[tested.code] ?? "It does not work yet");
    const certificate = tested.code === "not-trusted" ? tested.certificate : undefined;
    const trust = certificate && h("button", { class: "button small primary", type: "button", "data-testid": "server-trust" }, "Trust it, and test again");
    if (trust && certificate) {
      trust.onclick = () => {
        anchor = certificate.trust_anchor;
        testing.click();
        testing.focus();
      };
    }
    result.replaceChildren(
      h(
        "div",
        { class: `notice ${tested.ok ? "good" : "bad"}` },
        icon(tested.ok ? "check" : "alert"),
        h(
          "div",
          { class: "notice-body" },
          h("h2", {}, head),
          h("p", {}, tested.message.replace(`${head}. `, "")),
          certificate && h("p", { class: "mono fingerprint", "data-testid": "server-fingerprint" }, certificate.fingerprint),
          h("p", { class: "muted mono" }, tested.code),
          trust && h("div", { class: "actions" }, trust),
        ),
      ),
    );
  }

  const known = server?.name;
  const general = h("div", { class: "field-error", role: "alert", hidden: true });
  const save = h("button", { class: "button primary", type: "submit", "data-testid": "server-save" }, server ? "Save" : "Add");
  const dialog = openDialog({
    title: server ? `Edit ${server.name}` : "Add tunnel server",
    testid: "server-dialog",
    body: [
      name.box,
      description.box,
      internal.box,
      external.box,
      h("label", { class: "check" }, uses, h("span", {}, "Use credentials")),
      credentials,
      server?.trusted && h("p", { class: "field-hint" }, "Its certificate is trusted by ", h("span", { class: "mono fingerprint" }, server.trusted)),
      result,
      general,
    ],
    foot: [testing, h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel"), save],
    submit: async () => {
      general.hidden = true;
      name.refuse(name.value ? "" : "Enter a name.");
      if (!name.value) return name.element.focus();
      save.disabled = true;
      try {
        await (known === undefined ? call("POST", "/api/v1/tunnel-servers", entered()) : call("PUT", path(known), entered()));
        dialog.close();
        toast(`${name.value} was ${known === undefined ? "added" : "changed"}.`, "good");
        location.hash = `#/tunnel/${encodeURIComponent(name.value)}`;
      } catch (error) {
        const place = error instanceof ApiError && error.code === "bad-address" ? internal : undefined;
        if (place) {
          place.refuse(words(error));
          place.element.focus();
        } else {
          general.replaceChildren(icon("alert"), h("span", {}, words(error)));
          general.hidden = false;
        }
      } finally {
        save.disabled = false;
      }
    },
  });
}

/** @type {Record<string, string>} */
const HEADS = {
  "bad-address": "The address cannot be read",
  "unknown-host": "The host is not known",
  refused: "Nothing listens there",
  "no-answer": "No answer",
  "not-tls": "It does not speak HTTPS",
  "is-tls": "It does not speak HTTP",
  "https-only": "It wants HTTPS",
  "not-trusted": "Its certificate is not trusted yet",
  "wrong-name": "Its certificate is for another name",
  "wrong-credentials": "User or password is wrong",
  "credentials-wanted": "It wants credentials",
  "not-a-tunnel-server": "It is not a tunnel server",
  "other-external-address": "It tells devices another address",
};

/** @param {TunnelServer} server */
export function removeServer(server) {
  confirmThen({
    title: `Remove ${server.name}?`,
    text: `It is no longer asked, and ${plural(server.devices, "device")} of it ${server.devices === 1 ? "is" : "are"} no longer shown here. The devices stay registered there.`,
    action: "Remove",
    act: async () => {
      await call("DELETE", path(server.name));
      toast(`${server.name} was removed.`);
      location.hash = "#/services";
    },
  });
}

/** @param {TunnelServer} server */
export async function refreshServer(server) {
  try {
    await call("POST", `${path(server.name)}/refresh`);
    toast(`${server.name} is asked again.`);
  } catch (error) {
    toast(words(error), "bad");
  }
}

/** Rates and round-trip times of devices that are connected, asked for while somebody looks. */
class Figures {
  constructor() {
    /** By serial number. @type {Map<string, import("./types.js").Figures>} */
    this.bySerial = new Map();
    this.asked = 0;
  }

  /** Those of now, or of some seconds ago; asks again where they are older. @param {string} serial */
  of(serial) {
    this.look();
    return this.bySerial.get(serial);
  }

  look() {
    if (document.hidden || Date.now() - this.asked < 5000) return;
    this.asked = Date.now();
    call("GET", "/api/v1/figures").then((/** @type {import("./types.js").Figures[]} */ all) => {
      this.bySerial = new Map(all.map((figures) => [figures.serial, figures]));
      store.changed();
    }, () => undefined);
  }
}

export const figures = new Figures();
