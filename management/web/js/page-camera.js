// One camera: live or from any recorded moment, with its timeline.

import { call, refusal, words } from "./api.js";
import { field, openDialog } from "./dialog.js";
import { announce, h, icon, morph, toast } from "./dom.js";
import { bitrate, day, duration, fileTime, full, localInput, sentence, sinceThen, time } from "./format.js";
import { LivePlayer } from "./live.js";
import { crumbs, fact, missing } from "./page-device.js";
import { PlaybackPlayer } from "./playback.js";
import { cameraMark } from "./steps.js";
import { store } from "./store.js";
import { Timeline } from "./timeline.js";
import { markOf } from "./tree.js";

/** @typedef {import("./types.js").Camera} Camera */
/** @typedef {import("./timeline.js").Gap} Gap */

const SPEEDS = [0.5, 1, 2, 4, 8];

/** Expired footage is no outage. */
const NO_OUTAGE = new Set(["expired"]);

export class CameraPage {
  /** @param {HTMLElement} into @param {number} id @param {URLSearchParams} query `t`: a moment to begin with */
  constructor(into, id, query) {
    this.into = into;
    this.id = id;
    this.title = store.camera(id)?.name ?? "Camera";
    /** @type {LivePlayer | PlaybackPlayer | null} */
    this.player = null;
    this.speed = 1;
    this.muted = true;
    this.showStats = localStorage.getItem("homing-stats") === "on";
    /** @type {Gap[]} */
    this.gaps = [];
    /** What stands over the picture. @type {{symbol: string | null, text: string} | null} */
    this.over = { symbol: null, text: "Connecting…" };

    this.video = h("video", { playsinline: true, "data-testid": "video", "aria-label": "Picture" });
    this.video.muted = true;
    this.overlay = h("div", { class: "over" });
    this.mode = h("div", { class: "stage-mode", "data-testid": "mode" });
    this.statsList = h("dl", { class: "stage-stats", "data-testid": "stats", hidden: !this.showStats });
    this.stage = h("div", { class: "stage", ondblclick: () => this.fullscreen() }, this.video, this.overlay, this.mode, this.statsList);
    this.controls = h("div", { class: "controls", role: "group", "aria-label": "Playing" });
    /** Picture, controls and timeline: what full screen shows. */
    this.deck = h("div", { class: "deck" });
    this.timeline = new Timeline(id, {
      seek: (moment) => this.playFrom(moment),
      live: () => this.goLive(),
      gaps: (gaps) => {
        this.gaps = gaps.filter((gap) => !NO_OUTAGE.has(gap.code));
        this.draw();
      },
    });
    this.deck.append(this.stage, this.controls, this.timeline.element);
    this.clock = setInterval(() => this.tick(), 250);
    this.keys = (/** @type {KeyboardEvent} */ event) => this.key(event);
    addEventListener("keydown", this.keys);

    const asked = Date.parse(query.get("t") ?? "");
    if (Number.isNaN(asked)) this.goLive();
    else this.playFrom(asked, true);
  }

  end() {
    clearInterval(this.clock);
    removeEventListener("keydown", this.keys);
    this.player?.close();
    this.timeline.close();
  }

  get live() {
    return this.player instanceof LivePlayer && !this.player.frozen;
  }

  get playing() {
    return this.player instanceof PlaybackPlayer ? this.player.playing : this.live;
  }

  // What is played

  goLive() {
    if (this.player instanceof LivePlayer && !this.player.frozen) return this.player.jump();
    this.player?.close();
    this.over = { symbol: null, text: "Connecting…" };
    const player = new LivePlayer(this.video, this.id, (state) => {
      if (this.player !== player && this.player !== null) return;
      if (state.kind === "playing") this.over = null;
      else if (state.kind === "connecting") this.over = { symbol: null, text: state.reason ?? "Connecting…" };
      else this.over = { symbol: state.kind === "unsupported" ? "alert" : "camera", text: state.reason ?? "" };
      this.drawPlayer();
    }, !this.muted);
    this.player = player;
    this.timeline.toPresent();
    this.draw();
  }

  /** @param {number} moment milliseconds since 1970 @param {boolean} [playing] */
  playFrom(moment, playing = this.playing) {
    if (this.player instanceof PlaybackPlayer && this.player.seek(moment)) return;
    this.player?.close();
    this.over = null;
    const player = new PlaybackPlayer(this.video, this.id, moment, {
      changed: () => this.player === player && this.drawPlayer(),
      gap: (from, to) => {
        const gap = this.gaps.find((gap) => gap.start < to && gap.end > from);
        toast(`Nothing was recorded for ${duration(to - from)}${gap ? `: ${sentence(gap.message)}` : "."}`);
      },
      newest: () => {
        if (this.player !== player || !player.playing) return;
        announce("Live");
        this.goLive();
      },
      failed: (problem) => {
        if (this.player !== player) return;
        this.over = problem === null ? null : { symbol: "alert", text: problem };
        this.drawPlayer();
      },
    });
    this.player = player;
    player.setSpeed(this.speed);
    if (!playing) player.play(false);
    this.timeline.reveal(moment);
    this.draw();
  }

  togglePlay() {
    if (this.player instanceof PlaybackPlayer) {
      this.player.play(!this.player.playing);
    } else if (this.player?.frozen) {
      this.playFrom(this.moment ?? Date.now(), true);
    } else if (this.player?.moment !== undefined) {
      // This picture is a moment of the past from now on; going on from here is playback.
      this.player.freeze();
      this.over = null;
    }
    this.drawPlayer();
  }

  get moment() {
    return this.player?.moment;
  }

  /** @param {number} direction */
  toGap(direction) {
    const here = this.live ? Date.now() : (this.moment ?? Date.now());
    const gap = direction > 0 ? this.gaps.find((gap) => gap.start > here + 500) : this.gaps.findLast((gap) => gap.end < here - 3000);
    if (!gap) return toast(direction > 0 ? "No later gap in view." : "No earlier gap in view. Zoom out to see more.");
    this.openGap(gap);
  }

  /** To the last seconds before a gap. @param {Gap} gap */
  openGap(gap) {
    this.timeline.reveal(gap.start);
    this.playFrom(gap.start - 3000);
    announce(`Gap of ${duration(gap.end - gap.start)}: ${gap.message}`);
  }

  snapshot() {
    const { video } = this;
    if (!video.videoWidth) return toast("There is no picture to keep.", "bad");
    const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d")?.drawImage(video, 0, 0);
    const name = store.camera(this.id)?.name ?? `Camera ${this.id}`;
    const moment = this.moment ?? Date.now();
    canvas.toBlob((blob) => {
      if (!blob) return;
      const url = URL.createObjectURL(blob);
      h("a", { href: url, download: `${name} ${fileTime(moment)}.png` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
      toast("The picture is in your downloads.", "good");
    }, "image/png");
  }

  async fullscreen() {
    try {
      if (document.fullscreenElement) await document.exitFullscreen();
      else await this.deck.requestFullscreen();
    } catch {
      // iPhones show only the video itself in full screen.
      /** @type {any} */ (this.video).webkitEnterFullscreen?.();
    }
  }

  export() {
    const here = this.moment ?? Date.now();
    const start = field({ label: "From", name: "start", input: { type: "datetime-local", step: 1, value: localInput(here - 60_000), autofocus: true, "data-testid": "export-start" } });
    const end = field({ label: "To", name: "end", hint: "At most 24 hours, in this browser's time zone.", input: { type: "datetime-local", step: 1, value: localInput(Math.min(here + 60_000, Date.now())), "data-testid": "export-end" } });
    const go = h("button", { class: "button primary", type: "submit", "data-testid": "export-go" }, icon("download"), "Export");
    const dialog = openDialog({
      title: "Export recording",
      testid: "export-dialog",
      body: [h("p", { class: "muted" }, "One MP4 file that any player opens. It begins with the nearest key frame; gaps are left out."), h("div", { class: "columns" }, start.box, end.box)],
      foot: [h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel"), go],
      submit: async () => {
        const from = new Date(start.value).getTime();
        const to = new Date(end.value).getTime();
        start.refuse(Number.isNaN(from) ? "Enter a date and a time." : "");
        end.refuse(Number.isNaN(to) ? "Enter a date and a time." : to <= from ? "The end is before the start." : to - from > 24 * 3600_000 ? "At most 24 hours; export in parts." : "");
        if (start.element.hasAttribute("aria-invalid") || end.element.hasAttribute("aria-invalid")) return;
        const path = `/api/v1/cameras/${this.id}/recording.mp4?start=${(from / 1000).toFixed(3)}&end=${(to / 1000).toFixed(3)}`;
        go.disabled = true;
        try {
          // A refusal would replace the page: ask for the first byte only, before the browser takes over.
          const response = await fetch(path, { headers: { range: "bytes=0-0" } });
          if (!response.ok) throw await refusal(response);
          await response.body?.cancel();
        } catch (error) {
          return end.refuse(error instanceof TypeError ? "The management server cannot be reached. Check the network, and try again." : words(error));
        } finally {
          go.disabled = false;
        }
        h("a", { href: path, download: "" }).click();
        dialog.close();
        toast("The export has begun; the browser shows its progress.", "good");
      },
    });
  }

  /** @param {Camera} camera */
  rename(camera) {
    const name = field({ label: "Name", name: "name", input: { value: camera.name, maxlength: 64, autofocus: true } });
    const dialog = openDialog({
      title: "Rename camera",
      body: [name.box],
      foot: [h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel"), h("button", { class: "button primary", type: "submit" }, "Save")],
      submit: async () => {
        try {
          await call("PATCH", `/api/v1/cameras/${this.id}`, { name: name.value });
          dialog.close();
        } catch (error) {
          name.refuse(words(error));
        }
      },
    });
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const target = /** @type {Element} */ (event.target);
    if (event.ctrlKey || event.metaKey || event.altKey || target.closest("input, select, textarea, dialog, [role=tree], button, a")) return;
    /** @type {Record<string, () => void>} */
    const keys = { " ": () => this.togglePlay(), k: () => this.togglePlay(), l: () => this.goLive(), f: () => this.fullscreen(), s: () => this.snapshot(), m: () => this.mute(), i: () => this.toggleStats(), n: () => this.toGap(1), p: () => this.toGap(-1) };
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  mute() {
    this.muted = !this.muted;
    this.video.muted = this.muted;
    if (this.player instanceof LivePlayer) this.player.setSound(!this.muted);
    this.drawPlayer();
  }

  toggleStats() {
    this.showStats = !this.showStats;
    localStorage.setItem("homing-stats", this.showStats ? "on" : "off");
    this.statsList.hidden = !this.showStats;
    this.drawPlayer();
  }

  // Drawing

  tick() {
    this.drawPlayer();
    if (this.showStats) this.drawStats();
  }

  drawStats() {
    const { player, video } = this;
    /** @type {[string, string][]} */
    let rows = [];
    if (player instanceof LivePlayer) {
      const stats = player.stats;
      rows = [
        ["Latency", stats.latencyMs === undefined ? "–" : `${Math.round(stats.latencyMs)} ms`],
        ["Bitrate", bitrate(stats.bitrateBps)],
        ["Frames", `${stats.fps.toFixed(1)} /s`],
        ["Picture", stats.width ? `${stats.width} × ${stats.height}` : "–"],
        ["Skipped", String(stats.skipped)],
      ];
    } else if (player) {
      const quality = video.getVideoPlaybackQuality();
      rows = [
        ["Picture", video.videoWidth ? `${video.videoWidth} × ${video.videoHeight}` : "–"],
        ["Buffered", `${Math.max(0, player.feed.end - video.currentTime).toFixed(1)} s`],
        ["Dropped", String(quality.droppedVideoFrames)],
      ];
    }
    morph(this.statsList, rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  }

  drawPlayer() {
    const { player, live } = this;
    const moment = this.moment;
    const { playing } = this;
    const loading = player instanceof PlaybackPlayer && player.loading && !this.over;
    this.overlay.hidden = !this.over && !loading;
    if (this.over) morph(this.overlay, this.over.symbol ? icon(this.over.symbol) : h("span", { class: "spinner" }), h("span", { role: "status" }, this.over.text));
    else if (loading) morph(this.overlay, h("span", { class: "spinner" }));
    this.overlay.classList.toggle("dim", this.over !== null);
    morph(this.mode, live ? [h("span", { class: "live-dot" }), "Live"] : "Recorded");
    this.mode.hidden = live && this.over !== null;
    this.timeline.setPlayhead(live ? Date.now() : (moment ?? Date.now()), live);
    const button = (/** @type {string} */ symbol, /** @type {string} */ name, /** @type {() => void} */ act, /** @type {Record<string, any>} */ more = {}) =>
      h("button", { class: "icon-button", type: "button", "aria-label": name, title: name, onclick: act, ...more }, icon(symbol));
    // What does not move has no time of now.
    const shown = !live ? moment : this.over ? undefined : Date.now();
    morph(
      this.controls,
      button(playing ? "pause" : "play", playing ? "Pause" : "Play", () => this.togglePlay(), { "data-testid": "play" }),
      h("button", { class: `to-live ${live && this.over ? "waiting" : ""}`, type: "button", "aria-pressed": String(live), "data-testid": "live", onclick: () => this.goLive() }, h("span", { class: "live-dot" }), "Live"),
      button("previous-gap", "Previous gap", () => this.toGap(-1), { disabled: this.gaps.length === 0 }),
      button("next-gap", "Next gap", () => this.toGap(1), { disabled: this.gaps.length === 0 }),
      h("span", { class: "clock", "data-testid": "clock" }, shown ? time(shown) : "–", h("small", {}, shown ? day(shown) : "")),
      h("span", { class: "gap" }),
      h(
        "select",
        { "aria-label": "Speed", title: "Speed", disabled: live, "data-testid": "speed", "data-key": "speed", "data-keep": true, onchange: (/** @type {any} */ event) => this.setSpeed(Number(event.target.value)) },
        SPEEDS.map((speed) => h("option", { value: speed, selected: speed === this.speed }, `${speed}×`)),
      ),
      player?.hasSound && button(this.muted ? "mute" : "sound", "Sound", () => this.mute(), { "aria-pressed": String(!this.muted) }),
      button("shutter", "Keep this picture", () => this.snapshot(), { "data-testid": "snapshot" }),
      button("download", "Export recording", () => this.export(), { "data-testid": "export" }),
      button("stats", "Figures", () => this.toggleStats(), { "aria-pressed": String(this.showStats), "data-testid": "toggle-stats" }),
      button("fullscreen", "Full screen", () => this.fullscreen()),
    );
  }

  /** @param {number} speed */
  setSpeed(speed) {
    this.speed = speed;
    if (this.player instanceof PlaybackPlayer) this.player.setSpeed(speed);
  }

  draw() {
    const camera = store.camera(this.id);
    if (!camera) {
      // It is asked for no more; the same number never comes back.
      if (store.ready) this.player?.close();
      return morph(this.into, missing("This camera", "It is not on any recording server, or was just removed."));
    }
    if (this.title !== camera.name) {
      this.title = camera.name;
      document.title = `${camera.name} · Homing`;
    }
    const hardware = store.hardwareById(camera.hardware);
    const device = store.device(camera.serial);
    const mark = cameraMark(camera);
    const place = () => this.into.querySelector('[data-key="player"]');
    morph(
      this.into,
      h(
        "div",
        { class: "camera-page", "data-key": `camera-${this.id}`, "data-testid": "camera-page" },
        h(
          "div",
          { class: "page-head" },
          h(
            "div",
            { class: "page-title" },
            crumbs([["#/servers", "Servers"], ...(hardware ? [/** @type {[string, string]} */ ([`#/hardware/${hardware.id}`, hardware.name])] : [])]),
            h("h1", {}, camera.name, h("span", { class: `badge badge-${mark.mark}`, "data-testid": "camera-state" }, markOf(mark), mark.word)),
          ),
          h("div", { class: "actions" }, h("button", { class: "button small", type: "button", onclick: () => this.rename(camera) }, icon("edit"), "Rename")),
        ),
        h("div", { "data-keep": true, "data-key": "player" }),
        h(
          "div",
          { class: "below" },
          h(
            "section",
            { class: "card", "aria-label": "Gaps" },
            h("div", { class: "card-head" }, h("h2", {}, "Gaps in the recording"), h("span", { class: "muted num" }, this.gaps.length ? String(this.gaps.length) : "")),
            this.gaps.length === 0
              ? h("div", { class: "card-body muted" }, "None in the time around what the timeline shows.")
              : h(
                  "ul",
                  { class: "gap-list" },
                  this.gaps.toReversed().map((gap) =>
                    h(
                      "li",
                      { "data-key": String(gap.start) },
                      h("button", { class: "gap-row", type: "button", onclick: () => this.openGap(gap) }, h("b", {}, `${day(gap.start)} ${time(gap.start)}`), h("span", {}, duration(gap.end - gap.start)), h("small", {}, sentence(gap.message))),
                    ),
                  ),
                ),
          ),
          h(
            "section",
            { class: "card", "aria-label": "Camera" },
            h("div", { class: "card-head" }, h("h2", {}, "Camera")),
            h(
              "dl",
              { class: "facts card-body" },
              fact("State", h("span", { title: full(camera.status.since) }, `${mark.word} for ${sinceThen(camera.status.since)}`)),
              camera.status.problem && fact("Problem", sentence(camera.status.problem.message)),
              hardware && fact("Hardware", h("a", { href: `#/hardware/${hardware.id}` }, hardware.name)),
              hardware && fact("Model", hardware.model || "–"),
              fact("Device", device ? h("a", { href: `#/device/${device.serial}` }, device.name || device.serial) : h("span", { class: "mono" }, camera.serial)),
              fact("Number", h("span", { class: "num" }, camera.id)),
            ),
          ),
        ),
      ),
    );
    // Once: a video that is taken out of the page and put back stops playing.
    if (!place()?.firstChild) place()?.append(this.deck);
  }
}
