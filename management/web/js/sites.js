// Places with one Internet connection: what their devices send, against what the connection carries, and a limit.

import { call, words } from "./api.js";
import { confirmThen, field, openDialog } from "./dialog.js";
import { h, icon, toast } from "./dom.js";
import { bitrate, plural } from "./format.js";
import { store } from "./store.js";
import { markOf } from "./tree.js";

/** @typedef {import("./types.js").Site} Site */

/** Asked for while somebody looks: what they use changes all the time. */
class Sites {
  constructor() {
    /** @type {Site[]} */
    this.all = [];
    this.asked = 0;
  }

  /** As they were some seconds ago at most; asks again where they are older. */
  now() {
    if (!document.hidden && Date.now() - this.asked > 5000) this.ask();
    return this.all;
  }

  ask() {
    this.asked = Date.now();
    return call("GET", "/api/v1/sites").then((/** @type {Site[]} */ all) => {
      this.all = all;
      store.changed();
    }, () => undefined);
  }
}

export const sites = new Sites();

/** @param {string} name */
const path = (name) => `/api/v1/sites/${encodeURIComponent(name)}`;

/** @param {number} [mbit] */
const mbits = (mbit) => (mbit === undefined ? "–" : `${mbit} Mbit/s`);

export function sitesCard() {
  const all = sites.now();
  return h(
    "section",
    { class: "card", "data-key": "sites", "data-testid": "sites" },
    h("div", { class: "card-head" }, h("h2", {}, "Sites"), h("button", { class: "button small", type: "button", "data-testid": "add-site", onclick: () => editSite() }, icon("plus"), "Add site")),
    all.length === 0
      ? h("p", { class: "card-body muted" }, "A site is a place with one Internet connection. Enter what it carries, and you are warned before its cameras fill it; a limit is shared fairly by its devices.")
      : h(
          "div",
          { class: "scroll-x" },
          h(
            "table",
            { class: "table" },
            h("thead", {}, h("tr", {}, h("th", {}, "Site"), h("th", {}, "State"), h("th", { class: "end" }, "Last minute"), h("th", { class: "end spare" }, "Upstream"), h("th", { class: "end spare" }, "Limit"), h("th", { class: "end spare" }, "Devices"))),
            h(
              "tbody",
              {},
              all.map((site) =>
                h(
                  "tr",
                  { "data-key": site.name },
                  h("td", {}, h("button", { class: "link", type: "button", "data-testid": `site-${site.name}`, onclick: () => editSite(site) }, site.name)),
                  h("td", {}, stateOf(site)),
                  h("td", { class: "end num nowrap" }, bitrate(site.minute_bps)),
                  h("td", { class: "end num nowrap spare" }, mbits(site.upstream_mbit)),
                  h("td", { class: "end num nowrap spare" }, mbits(site.limit_mbit)),
                  h("td", { class: "end num spare" }, site.devices.length),
                ),
              ),
            ),
          ),
        ),
  );
}

/** @param {Site} site */
function stateOf(site) {
  const mark = {
    full: { mark: "red", word: `Above ${site.warn_percent} %` },
    room: { mark: "green", word: "Has room" },
    unknown: { mark: "grey", word: site.upstream_mbit === undefined ? "Upstream not entered" : "Not known now" },
  }[site.state];
  return [
    h("span", { class: `badge badge-${mark.mark}` }, markOf(mark), mark.word),
    site.untold.length > 0 && h("div", { class: "muted", "data-testid": `site-untold-${site.name}` }, `Not told yet: ${site.untold.join(", ")}`),
  ];
}

/** Said of whom could not be told yet. @param {{untold: string[]} | undefined} answer */
const rest = (answer) => (answer ? ` ${answer.untold.join(", ")} will be told as soon as possible.` : "");

/** Adds a site, or edits one. @param {Site} [site] */
function editSite(site) {
  const number = (/** @type {number | undefined} */ value) => ({ value: value ?? "", inputmode: "decimal", autocomplete: "off", placeholder: "Mbit/s" });
  const warned = (site ?? sites.all[0])?.warn_percent;
  const name = field({ label: "Name", name: "name", input: { value: site?.name ?? "", maxlength: 64, autocomplete: "off", disabled: site !== undefined, "data-testid": "site-name" } });
  const upstream = field({ label: "Upstream of its Internet connection", name: "upstream", hint: `In Mbit/s, as the contract says or a speed test shows. You are warned ${warned === undefined ? "before it is full" : `above ${warned} %`}.`, input: { ...number(site?.upstream_mbit), "data-testid": "site-upstream" } });
  const limit = field({ label: "Limit", name: "limit", hint: "In Mbit/s; left empty, there is none. Devices share it fairly and slow down; nothing is dropped on the way.", input: { ...number(site?.limit_mbit), "data-testid": "site-limit" } });
  const chosen = new Set(site?.devices ?? []);
  const devices = store.devices.filter((device, index, all) => all.findIndex((other) => other.serial === device.serial) === index);
  const picks = devices.map((device) => {
    const elsewhere = device.site && device.site !== site?.name ? `, at ${device.site} now` : "";
    const input = /** @type {HTMLInputElement} */ (h("input", { type: "checkbox", checked: chosen.has(device.serial), "data-testid": `site-device-${device.serial}` }));
    input.onchange = () => void (input.checked ? chosen.add(device.serial) : chosen.delete(device.serial));
    return h("label", { class: "check" }, input, h("span", {}, device.name || device.serial, h("small", { class: "muted" }, ` ${device.serial}${elsewhere}`)));
  });
  const general = h("div", { class: "field-error", role: "alert", hidden: true });
  const remove = site && h("button", { class: "button danger", type: "button", onclick: () => { dialog.close(); removeSite(site); } }, "Remove");
  const save = h("button", { class: "button primary", type: "submit", "data-testid": "site-save" }, "Save");
  const dialog = openDialog({
    title: site ? `Site ${site.name}` : "Add site",
    testid: "site-dialog",
    body: [name.box, upstream.box, limit.box, h("fieldset", { class: "picks" }, h("legend", {}, "Devices there"), picks.length ? picks : h("p", { class: "muted" }, "No device is registered yet.")), general],
    foot: [remove, h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel"), save],
    submit: async () => {
      [name, upstream, limit].forEach((field) => field.refuse(""));
      general.hidden = true;
      if (!name.value) return name.refuse("Enter a name.");
      const read = (/** @type {ReturnType<typeof field>} */ of) => (of.value === "" ? undefined : Number(of.value.replace(",", ".")));
      for (const of of [upstream, limit]) {
        const value = read(of);
        if (value !== undefined && !(value >= 0.01)) return of.refuse("A number of Mbit/s, such as 10 or 2.5.");
      }
      save.disabled = true;
      try {
        const answer = await call("PUT", path(name.value), { upstream_mbit: read(upstream), limit_mbit: read(limit), devices: [...chosen] });
        dialog.close();
        toast(`${name.value} was saved.${rest(answer)}`, "good");
        await sites.ask();
      } catch (error) {
        general.replaceChildren(icon("alert"), h("span", {}, words(error)));
        general.hidden = false;
      } finally {
        save.disabled = false;
      }
    },
  });
}

/** @param {Site} site */
function removeSite(site) {
  confirmThen({
    title: `Remove ${site.name}?`,
    text: `${plural(site.devices.length, "device")} of it ${site.devices.length === 1 ? "stays" : "stay"} registered, without a limit.`,
    action: "Remove",
    act: async () => {
      const answer = await call("DELETE", path(site.name));
      toast(`${site.name} was removed.${rest(answer)}`);
      await sites.ask();
    },
  });
}
