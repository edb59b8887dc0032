// The connection flow as the page tells it: docs/connection-flow.md for people who wait.

/** @typedef {import("./types.js").Device} Device */

/** @type {{name: string, title: string, who: string, done: string}[]} */
export const STEPS = [
  { name: "register", title: "Register", who: "Administrator → tunnel server", done: "Serial number and OAK were entered." },
  { name: "relay", title: "Relay", who: "Tunnel server → dispatcher", done: "The dispatcher knows whose device it is." },
  { name: "press", title: "Press", who: "Installer → device", done: "The one-click button was pressed." },
  { name: "phone-home", title: "Phone home", who: "Device → dispatcher", done: "The device called the dispatcher." },
  { name: "dispatch", title: "Dispatch", who: "Dispatcher → device", done: "The OAK was proven, the log-in worked, the device was told where to go." },
  { name: "connect", title: "Connect", who: "Device → tunnel server", done: "The device dialled the tunnel server." },
  { name: "tunnel", title: "Tunnel", who: "Device ⇄ tunnel server", done: "Both ends proved who they are; the tunnel is up." },
  { name: "add", title: "Add", who: "Administrator → recording server", done: "The device was added; its cameras are recorded." },
];

/** @param {string} name @returns {number} 1 to 8; 0 for none */
export function stepNumber(name) {
  return STEPS.findIndex((step) => step.name === name) + 1;
}

/** @param {string} name */
export function stepTitle(name) {
  return STEPS[stepNumber(name) - 1]?.title ?? name;
}

/** What the administrator can do now, in words. @param {Device} device */
export function whatNext(device) {
  if (device.state === "grey") return { title: "The device is at another tunnel server", text: "Its registration here is kept so that it can come back." };
  if (device.hardware !== undefined) {
    return device.connected
      ? { title: "Everything is in place", text: "The device is connected, added and recorded." }
      : {
          title: "The device is away",
          text: "Check its power and its network. It dials again by itself, at growing intervals of up to half a minute; nothing has to be done here.",
        };
  }
  if (device.connected) return { title: "Ready to add", text: "The tunnel is up. Add the device to a recording server to see and record it." };
  switch (device.relay) {
    case "pending":
      return { title: "The dispatcher cannot be reached", text: "The registration is kept and relayed as soon as the dispatcher answers. Check the tunnel server's way to the Internet." };
    case "refused":
      return { title: "The dispatcher refused the device", text: "Compare OAK, user and password with the label and correct them; the device is tried again at once." };
    case "dispatching":
      return { title: "The device is at the dispatcher", text: "It proves its OAK and is told where to go. This takes a few seconds." };
    case "dispatched":
      return { title: "The device is on its way here", text: "The dispatcher has sent it to this tunnel server. If it does not arrive, check that the tunnel server's public address can be reached from the device's network." };
    default:
      return { title: "Press the one-click button", text: "Plug the device in anywhere with Internet access and press its one-click button. It phones home within seconds." };
  }
}

/** How an added device or a registered one is shown: a mark with shape and colour, and a word. @param {Device} device */
export function deviceMark(device) {
  if (device.state === "green" && !device.connected) return { mark: "offline", word: device.word };
  if (device.state === "grey") return { mark: "none", word: device.moving?.tunnel_server ? `${device.word} to ${device.moving.tunnel_server}` : device.word };
  return { mark: device.state, word: device.word };
}

/** @param {import("./types.js").Camera} camera */
export function cameraMark(camera) {
  switch (camera.status.state) {
    case "recording":
      return { mark: "green", word: "Recording" };
    case "connecting":
      return { mark: "yellow", word: "Connecting" };
    default:
      return { mark: "red", word: "No signal" };
  }
}
