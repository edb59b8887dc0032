// What an administrator does with a registered device: rename, unregister, move, hand to another owner, look up its
// password.

import { ApiError, call, words } from "./api.js";
import { confirmThen, field, openDialog, ownPassword } from "./dialog.js";
import { h, icon, toast } from "./dom.js";
import { sentence } from "./format.js";
import { store } from "./store.js";

/** @typedef {import("./types.js").Device} Device */

/** @param {Device} device */
function named(device) {
  return device.name || device.serial;
}

/**
 * A form whose last field or general line shows what was refused.
 * @param {object} options
 * @param {string} options.title
 * @param {string} options.testid
 * @param {string} options.action
 * @param {import("./dom.js").Child[]} options.intro
 * @param {ReturnType<typeof field>[]} options.fields
 * @param {(error: unknown) => ReturnType<typeof field> | undefined} [options.place] where an error belongs
 * @param {import("./dom.js").Child[]} [options.choices] below the fields
 * @param {import("./dom.js").Child[]} [options.more] other buttons
 * @param {() => Promise<unknown>} options.act
 */
function form({ title, testid, action, intro, fields, place, choices = [], more = [], act }) {
  const general = h("div", { class: "field-error", role: "alert", hidden: true });
  const go = h("button", { class: "button primary", type: "submit", "data-testid": `${testid}-submit` }, action);
  const dialog = openDialog({
    title,
    testid,
    body: [...intro, ...fields.map((field) => field.box), ...choices, general],
    foot: [...more, h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel"), go],
    submit: async () => {
      general.hidden = true;
      fields.forEach((field) => field.refuse(""));
      go.disabled = true;
      try {
        await act();
        dialog.close();
      } catch (error) {
        const at = place?.(error);
        if (at) {
          at.refuse(words(error));
          at.element.focus();
        } else {
          general.replaceChildren(icon("alert"), h("span", {}, words(error)));
          general.hidden = false;
        }
      } finally {
        go.disabled = false;
      }
    },
  });
  return dialog;
}

/** @param {Device} device */
export function rename(device) {
  const name = field({ label: "Name", name: "name", input: { value: device.name, maxlength: 64, autofocus: true } });
  const description = field({ label: "Description", name: "description", input: { value: device.description, maxlength: 256 } });
  form({
    title: "Rename device",
    testid: "rename-dialog",
    action: "Save",
    intro: [],
    fields: [name, description],
    act: () => call("PATCH", `/api/v1/devices/${device.serial}`, { name: name.value, description: description.value }),
  });
}

/** Which of this management server's tunnel servers a device can go to. @param {Device} device */
export function targets(device) {
  return store.tunnelServers.filter((server) => !store.registrations(device.serial).some((known) => known.tunnel_server === server.name));
}

/** @param {Device} device */
export function moveDevice(device) {
  const servers = targets(device);
  const to = field({ label: "To", name: "move-to", control: h("select", { "data-testid": "move-to" }, servers.map((server) => h("option", { value: server.name }, server.reachable ? server.name : `${server.name} (unreachable)`))) });
  const text = device.connected
    ? "It is told to dial the other server as well, and keeps its tunnel here until it is there. Recording goes on."
    : "It is offline now. It goes when it comes back.";
  const keep = /** @type {HTMLInputElement} */ (h("input", { type: "checkbox", "data-testid": "move-keep" }));
  form({
    title: `Move ${named(device)}`,
    testid: "move-dialog",
    action: "Move",
    intro: [h("p", {}, `From ${device.tunnel_server} to another tunnel server. ${text}`)],
    fields: [to],
    choices: [
      h("label", { class: "check" }, keep, h("span", {}, `Keep it at ${device.tunnel_server} as well`)),
      h("p", { class: "field-hint" }, "It holds a tunnel to both then. Where one of them fails, recording goes on by the other."),
    ],
    act: () => call("PUT", `/api/v1/devices/${device.serial}/move`, { tunnel_server: to.element.value, keep: keep.checked || undefined }),
  });
}

/** @param {Device} device the registration that has the move @param {string} to */
export function undoMove(device, to) {
  const gone = device.moving?.state === "moved";
  confirmThen({
    title: gone ? `Bring ${named(device)} back?` : `Keep ${named(device)} here?`,
    text: gone ? `It is told to dial ${device.tunnel_server} again, and keeps its tunnel to ${to} until it is there.` : `It stays at ${device.tunnel_server}, and ${to} forgets it.`,
    action: gone ? "Bring it back" : "Keep it here",
    act: () => call("DELETE", `/api/v1/devices/${device.serial}/move`),
  });
}

/** One of two tunnel servers that keep a device lets it go. @param {Device} device its registration there @param {string} other */
export function leave(device, other) {
  confirmThen({
    title: `Shall ${named(device)} leave ${device.tunnel_server}?`,
    text: `${device.tunnel_server} forgets it, and it stays at ${other}.`,
    action: `Leave ${device.tunnel_server}`,
    act: () => call("DELETE", `/api/v1/devices/${device.serial}?tunnel_server=${encodeURIComponent(device.tunnel_server)}`),
  });
}

/** What a device left behind where it moved from. @param {Device} left */
export function releaseLeft(left) {
  confirmThen({
    title: `Finish the move of ${named(left)}?`,
    text: `${left.tunnel_server} forgets it. After that the move can no longer be undone, but the device can be moved again.`,
    action: "Finish",
    act: () => call("DELETE", `/api/v1/devices/${left.serial}?tunnel_server=${encodeURIComponent(left.tunnel_server)}`),
  });
}

/** @param {Device} device */
export function transfer(device) {
  const own = store.tunnelServers.find((server) => server.name === device.tunnel_server)?.account;
  const account = field({
    label: "The other owner's account at the dispatcher",
    name: "account",
    hint: "They tell you its name." + (own ? ` Yours is “${own}”.` : ""),
    input: { autocomplete: "off", autocapitalize: "none", spellcheck: "false", autofocus: true, "data-testid": "offer-account" },
  });
  const withdraw = h("button", { class: "button danger", type: "button", "data-testid": "offer-withdraw" }, "Withdraw an offer");
  const dialog = form({
    title: `Give ${named(device)} to another owner`,
    testid: "offer-dialog",
    action: "Offer",
    intro: [h("p", {}, "Once the other owner registers the device, with the OAK on its label, it is theirs and goes to their tunnel server. Until then nothing changes. An offer ends after seven days.")],
    fields: [account],
    place: () => account,
    more: [withdraw],
    act: async () => {
      if (!account.value) throw new Error("Enter the account's name.");
      await call("PUT", `/api/v1/devices/${device.serial}/offer`, { account: account.value });
      toast(`${named(device)} is offered to ${account.value}.`, "good");
    },
  });
  withdraw.onclick = async () => {
    withdraw.disabled = true;
    try {
      await call("DELETE", `/api/v1/devices/${device.serial}/offer`);
      dialog.close();
      toast(`${named(device)} is offered to nobody.`);
    } catch (error) {
      account.refuse(words(error));
      withdraw.disabled = false;
    }
  };
}

/** @param {Device} device */
export function showPassword(device) {
  const reason = field({ label: "Why do you need it?", name: "reason", hint: "Goes into the audit log, with your name.", input: { maxlength: 200, autocomplete: "off", autofocus: true, "data-testid": "password-reason" } });
  const current = ownPassword();
  form({
    title: `Password of ${named(device)}`,
    testid: "password-dialog",
    action: "Show",
    intro: [],
    fields: [reason, current],
    place: (error) => (error instanceof ApiError && error.code === "reason-wanted" ? reason : current),
    act: async () => {
      /** @type {{user: string, password: string, own: boolean}} */
      const shown = await call("POST", `/api/v1/devices/${device.serial}/password`, { reason: reason.value, current: current.element.value });
      const secret = h("code", { "data-testid": "shown-password" }, shown.password);
      const copy = h("button", { class: "button", type: "button", onclick: async () => { await navigator.clipboard.writeText(shown.password); copy.lastChild?.replaceWith("Copied"); } }, icon("copy"), "Copy");
      const dialog = openDialog({
        title: `Password of ${named(device)}`,
        testid: "password-shown",
        body: [
          h("p", {}, "User ", h("b", {}, shown.user), shown.own ? ". The password is the device's own: it was set in place of the factory default." : "."),
          h("div", { class: "secret-once" }, secret, copy),
        ],
        foot: [h("button", { class: "button primary", type: "submit", autofocus: true }, "Close")],
        submit: () => dialog.close(),
        closed: () => (secret.textContent = ""),
      });
    },
  });
}

/** @param {Device} device */
export function unregister(device) {
  if (device.hardware !== undefined) {
    const dialog = openDialog({
      title: `${named(device)} is still recorded`,
      body: [h("p", {}, "Remove its hardware from the recording server first. Then the registration can be released.")],
      foot: [
        h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Close"),
        h("button", { class: "button primary", type: "submit" }, "Go to the hardware"),
      ],
      submit: () => {
        dialog.close();
        location.hash = `#/hardware/${device.hardware}`;
      },
    });
    return;
  }
  confirmThen({
    title: `Unregister ${named(device)}?`,
    text: "Its tunnel is closed and the claim is released: whoever holds the label can register it then, elsewhere or here again.",
    action: "Unregister",
    act: async () => {
      await call("DELETE", `/api/v1/devices/${device.serial}`);
      toast(`${named(device)} is no longer registered.`);
      location.hash = `#/tunnel/${encodeURIComponent(device.tunnel_server)}`;
    },
  });
}

/** A move in words. @param {import("./types.js").Moving} moving */
export function movingWords(moving) {
  const to = moving.tunnel_server ?? moving.servers.join(", ");
  const problem = moving.problem ? ` ${sentence(moving.problem.message)}` : "";
  switch (moving.state) {
    case "queued":
      return { title: `Goes to ${to}`, text: `It is told when it comes back.${problem}`, to };
    case "both":
      return { title: `At ${to}, too`, text: `It holds a tunnel to both. Where one of them fails, recording goes on by the other.${problem}`, to };
    case "trying":
      return { title: `On its way to ${to}`, text: `It tries to reach the other server, and keeps its tunnel here until it is there.${problem}`, to };
    default:
      return { title: `Moved to ${to}`, text: `It is there now.${problem}`, to };
  }
}
