// Numbers, times and labels as people read them.

const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const DAY = new Intl.DateTimeFormat(undefined, { weekday: "short", day: "numeric", month: "short" });
const FULL = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

/** `14:03:09`. @param {number | Date} moment */
export function time(moment) {
  return TIME.format(moment);
}

/** `Sat, 21 Nov`. @param {number | Date} moment */
export function day(moment) {
  return DAY.format(moment);
}

/** @param {string | number | undefined} moment RFC 3339, or milliseconds since 1970 */
export function full(moment) {
  return moment === undefined ? "–" : FULL.format(new Date(moment));
}

/** `3 min`, `2 h 5 min`: how long, in at most two units. @param {number} ms */
export function duration(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  const parts = [
    [Math.floor(seconds / 86400), "d"],
    [Math.floor(seconds / 3600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [seconds % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count !== 0);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .filter(([count]) => count !== 0)
    .map(([count, unit]) => `${count} ${unit}`)
    .join(" ");
}

/** `for 3 min`, by the clock of this machine. @param {string | undefined} since */
export function sinceThen(since) {
  return since === undefined ? "–" : `${duration(Date.now() - Date.parse(since))}`;
}

/** `1.2 MB`. @param {number} count */
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = count;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** `480 kbit/s`. @param {number} bps */
export function bitrate(bps) {
  return bps >= 1e6 ? `${(bps / 1e6).toFixed(1)} Mbit/s` : `${Math.round(bps / 1000)} kbit/s`;
}

/** What a person has typed of twelve hex digits: the digits, and the first character that is none. @param {string} text */
export function hexDigits(text) {
  const bare = text.replace(/[\s:.\-_‐‑–—]/g, "").toUpperCase();
  const wrong = bare.match(/[^0-9A-F]/);
  return { digits: bare, wrong: wrong ? wrong[0] : null };
}

/** `0123-4567-89AB`. @param {string} digits */
export function oakLabel(digits) {
  return (digits.match(/.{1,4}/g) ?? []).join("-");
}

/** A moment as a file name. @param {number} ms */
export function fileTime(ms) {
  const date = new Date(ms - new Date(ms).getTimezoneOffset() * 60000);
  return date.toISOString().slice(0, 19).replace("T", " ").replaceAll(":", ".");
}

/** For `<input type="datetime-local">`, to the second. @param {number} ms */
export function localInput(ms) {
  return new Date(ms - new Date(ms).getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}

/** @param {number} count @param {string} one @param {string} [many] */
export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/** Moments in the words of other programs, RFC 3339. */
const MOMENT = /\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)/g;

/** An error of another program as a sentence, its moments by the clock of this browser. @param {string} words */
export function sentence(words) {
  const text = words.replace(MOMENT, (moment) => full(moment.replace(/(\.\d{3})\d+/, "$1")));
  const first = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(first) ? first : `${first}.`;
}
