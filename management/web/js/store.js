// What the page knows of the world: kept true by the server's event stream.
//
// Invariant: after `ready`, the maps hold exactly what the server's board holds. The stream begins
// with everything (`reset`), so a reconnect needs no special case.

import { signInAgain } from "./api.js";

/** @typedef {import("./types.js").Device} Device */
/** @typedef {import("./types.js").TunnelServer} TunnelServer */
/** @typedef {import("./types.js").RecordingServer} RecordingServer */
/** @typedef {import("./types.js").Hardware} Hardware */
/** @typedef {import("./types.js").Camera} Camera */

/** In the background for so long: the stream is closed. Browsers allow six connections to a server, in all tabs. */
const HIDDEN_MS = 30_000;

const KINDS = /** @type {const} */ (["tunnel-server", "device", "recording-server", "hardware", "camera"]);

/** "Camera 10" comes after "Camera 9". */
const COLLATOR = new Intl.Collator(undefined, { numeric: true });

class Store {
  constructor() {
    /** @type {Record<typeof KINDS[number], Map<string, any>>} */
    this.things = { "tunnel-server": new Map(), device: new Map(), "recording-server": new Map(), hardware: new Map(), camera: new Map() };
    /** @type {EventSource | null} */
    this.source = null;
    /** Whether the stream is open and has told everything. */
    this.ready = false;
    /** Whether the stream is open now. */
    this.online = true;
    /** @type {Set<() => void>} */
    this.listeners = new Set();
    /** @type {Set<(before: Device, now: Device) => void>} */
    this.deviceListeners = new Set();
    this.scheduled = false;
    /** How long the last round of drawing took, in milliseconds. */
    this.drawing = 0;
    /** Sorted lists of what has not changed since. @type {Map<string, any[]>} */
    this.sorted = new Map();
    /** Devices by serial number. @type {Map<string, Device>} */
    this.bySerial = new Map();
    /** Collected between `reset` and `ready`, so that the page does not flicker through emptiness. @type {Store["things"] | null} */
    this.incoming = null;
  }

  /** Follows the world from now on, but not for a tab that nobody sees. */
  start() {
    this.open();
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let hiding;
    document.addEventListener("visibilitychange", () => {
      clearTimeout(hiding);
      if (document.hidden) {
        hiding = setTimeout(() => {
          this.source?.close();
          this.source = null;
        }, HIDDEN_MS);
      } else if (!this.source) {
        this.restart();
      }
    });
  }

  /** Opens the event stream; the browser reconnects by itself. */
  open() {
    const source = new EventSource("/api/v1/events");
    this.source = source;
    source.addEventListener("reset", () => {
      this.incoming = { "tunnel-server": new Map(), device: new Map(), "recording-server": new Map(), hardware: new Map(), camera: new Map() };
    });
    source.addEventListener("ready", () => {
      if (this.incoming) this.things = this.incoming;
      this.incoming = null;
      this.ready = true;
      this.online = true;
      this.changed();
    });
    for (const kind of KINDS) {
      source.addEventListener(kind, (event) => {
        const thing = JSON.parse(event.data);
        const map = (this.incoming ?? this.things)[kind];
        const before = map.get(event.lastEventId);
        map.set(event.lastEventId, thing);
        if (kind === "device" && !this.incoming && before) this.deviceListeners.forEach((listener) => listener(before, thing));
        this.changed();
      });
      source.addEventListener(`${kind}-removed`, (event) => {
        (this.incoming ?? this.things)[kind].delete(JSON.parse(event.data).key);
        this.changed();
      });
    }
    source.addEventListener("error", () => {
      this.online = false;
      this.changed();
      // A refusal closes the stream for good; it is asked why.
      if (source.readyState === EventSource.CLOSED) setTimeout(() => source === this.source && this.restart(), 2000 + Math.random() * 2000);
    });
  }

  /** Opens the event stream anew, if there still is a session. */
  async restart() {
    this.source?.close();
    try {
      const response = await fetch("/api/v1/session");
      // Dismissed, it is asked again soon: without a session nothing here stays true.
      if (response.status === 401) await signInAgain();
    } catch {
      // Still away: the stream tries again as well.
    }
    this.open();
  }

  changed() {
    this.sorted.clear();
    this.bySerial.clear();
    if (this.scheduled || this.incoming) return;
    this.scheduled = true;
    // One round of drawing for a burst of events, at most a quarter of the time for drawing; also in
    // background tabs, where frames do not come.
    setTimeout(() => {
      this.scheduled = false;
      const began = performance.now();
      this.listeners.forEach((listener) => listener());
      this.drawing = performance.now() - began;
    }, Math.max(30, this.drawing * 3));
  }

  /** @param {typeof KINDS[number]} kind */
  byName(kind) {
    let list = this.sorted.get(kind);
    if (!list) {
      list = [...this.things[kind].values()].sort((a, b) => COLLATOR.compare(a.name, b.name));
      this.sorted.set(kind, list);
    }
    return list;
  }

  /** @param {() => void} listener @returns {() => void} to stop listening */
  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** @returns {Device[]} by name */
  get devices() {
    return this.byName("device");
  }

  /** @returns {TunnelServer[]} */
  get tunnelServers() {
    return this.byName("tunnel-server");
  }

  /** @returns {RecordingServer[]} */
  get recordingServers() {
    return this.byName("recording-server");
  }

  /** @returns {Hardware[]} */
  get hardware() {
    return this.byName("hardware");
  }

  /** @returns {Camera[]} */
  get cameras() {
    return this.byName("camera");
  }

  /** Where it is; not what it left behind when it moved. @param {string} serial @returns {Device | undefined} */
  device(serial) {
    if (this.bySerial.size === 0) {
      const here = (/** @type {Device} */ device) => (device.connected ? 2 : device.state === "grey" ? 0 : 1);
      [...this.devices].sort((a, b) => here(a) - here(b)).forEach((device) => this.bySerial.set(device.serial, device));
    }
    return this.bySerial.get(serial);
  }

  /** Every registration of a device: two while it moves. @param {string} serial */
  registrations(serial) {
    return this.devices.filter((device) => device.serial === serial);
  }

  /** @param {number} id @returns {Camera | undefined} */
  camera(id) {
    return this.things.camera.get(String(id));
  }

  /** @param {number} id @returns {Hardware | undefined} */
  hardwareById(id) {
    return this.things.hardware.get(String(id));
  }

  /** @param {number} hardware */
  camerasOf(hardware) {
    return this.cameras.filter((camera) => camera.hardware === hardware);
  }
}

export const store = new Store();
