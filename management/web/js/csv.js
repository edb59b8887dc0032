// Devices to be registered, as a spreadsheet exports them: text in, rows out, nothing sent and nothing kept.
//
// The same rules as `base/src/table.rs` and `homing register --csv`; `app/testdata/lists.json` holds both to them.
// Here once more because the file shall not leave the browser before somebody presses Register.

import { hexDigits, oakLabel, plural } from "./format.js";

/**
 * @typedef {object} Row
 * @property {number} line its number in the file
 * @property {string} serial
 * @property {string} oak
 * @property {string} user
 * @property {string} password
 * @property {string} name
 * @property {string} description
 * @property {string} server
 * @property {{column: string, message: string}} [fault]
 */
/** @typedef {"serial"|"oak"|"user"|"password"|"name"|"description"|"server"} Key */

/** In their own order; with the names that a heading may have, one of more than four letters as a part of it. @type {{key: Key, headings: string[], needed?: boolean}[]} */
const COLUMNS = [
  { key: "serial", headings: ["serial", "mac", "macaddress"], needed: true },
  { key: "oak", headings: ["oak", "ownerauthenticationkey"], needed: true },
  { key: "user", headings: ["user", "username", "login"] },
  { key: "password", headings: ["password", "pass"] },
  { key: "name", headings: ["name", "devicename", "cameraname"] },
  { key: "description", headings: ["description", "location", "note"] },
  { key: "server", headings: ["server", "tunnelserver", "sts"] },
];

/** As the API has it. */
const LONGEST = { name: 64, description: 256 };

/**
 * Reads a list. Faults of a line stand in it; one of the list as a whole is thrown, in words.
 * @param {string} text
 * @param {{user: string, password: string}} defaults for lines that name none
 * @returns {Row[]}
 */
export function readList(text, defaults) {
  const lines = cells(text.replace(/^\uFEFF/, ""));
  let places = COLUMNS.map((_, index) => index);
  /** @type {Row[]} */
  const rows = [];
  let first = true;
  for (const { line, values } of lines) {
    if (values.every((value) => value === "") || values[0] === "sep=") continue;
    if (first && values.some((value) => isCalled(COLUMNS[0], value))) places = heading(values);
    else rows.push(row(line, values, places, defaults));
    first = false;
  }
  check(rows);
  return rows;
}

/** Says anew what is wrong with each row, also with a serial number that two of them have. @param {Row[]} rows */
export function check(rows) {
  /** @type {Map<string, number>} */
  const lines = new Map();
  for (const row of rows) {
    row.fault = faultOf(row);
    if (row.fault) continue;
    const before = lines.get(row.serial);
    if (before !== undefined) row.fault = { column: "serial", message: `The same serial number as on line ${before}.` };
    else lines.set(row.serial, row.line);
  }
}

/** @param {{headings: string[]}} column @param {string} heading */
function isCalled(column, heading) {
  const bare = heading.toLowerCase().replace(/[^\p{L}\p{N}]/gu, "");
  return column.headings.some((known) => bare === known || (known.length > 4 && bare.includes(known)));
}

/** Where each column stands; -1 for none. @param {string[]} values */
function heading(values) {
  const places = COLUMNS.map(() => -1);
  values.forEach((value, place) => {
    const column = COLUMNS.findIndex((column) => isCalled(column, value));
    if (column >= 0 && places[column] < 0) places[column] = place;
  });
  const lacking = COLUMNS.find((column, index) => column.needed && places[index] < 0);
  if (lacking) throw new Error(`The heading names no column for the ${lacking.key === "oak" ? "OAK" : "serial number"}; call one “${lacking.headings[0]}”.`);
  return places;
}

/** @param {number} line @param {string[]} values @param {number[]} places @param {{user: string, password: string}} defaults @returns {Row} */
function row(line, values, places, defaults) {
  /** @type {Row} */
  const row = { line, serial: "", oak: "", user: "", password: "", name: "", description: "", server: "" };
  COLUMNS.forEach(({ key }, index) => (row[key] = values[places[index]] ?? ""));
  row.user ||= defaults.user;
  row.password ||= defaults.password;
  return row;
}

/** What is wrong with a row by itself; what is right is written as it is printed on labels. @param {Row} row */
function faultOf(row) {
  for (const key of /** @type {const} */ (["serial", "oak"])) {
    const { digits, wrong } = hexDigits(row[key]);
    if (wrong) return { column: key, message: `“${wrong}” is not one of 0–9 and A–F.` };
    if (digits.length !== 12) return { column: key, message: digits ? `${plural(digits.length, "digit")} where there should be 12.` : `No ${key === "oak" ? "OAK" : "serial number"}.` };
    row[key] = key === "oak" ? oakLabel(digits) : digits;
  }
  if (!row.user) return { column: "user", message: "No user to log in to the device with." };
  if (!row.password) return { column: "password", message: "No password to log in to the device with." };
  for (const key of /** @type {const} */ (["name", "description"])) {
    if ([...row[key]].length > LONGEST[key] || /\p{Cc}/u.test(row[key])) return { column: key, message: `More than ${LONGEST[key]} characters, or some that are not printable.` };
  }
  return undefined;
}

/** The values of each line, without spaces around them; RFC 4180. @param {string} text */
function cells(text) {
  const delimiter = delimiterOf(text);
  /** @type {{line: number, values: string[]}[]} */
  const lines = [];
  let line = 1;
  for (let at = 0; at < text.length; ) {
    const began = line;
    /** @type {string[]} */
    const values = [];
    for (let end = false; !end; ) {
      let value = "";
      if (text[at] === '"') {
        for (at += 1; at < text.length; at += 1) {
          if (text[at] === '"' && text[at + 1] === '"') at += 1;
          else if (text[at] === '"') break;
          else if (text[at] === "\n") line += 1;
          value += text[at];
        }
        at += 1;
      }
      while (at < text.length && text[at] !== delimiter && text[at] !== "\n") value += text[at++];
      values.push(value.trim());
      end = text[at] !== delimiter;
      at += 1;
    }
    line += 1;
    lines.push({ line: began, values });
  }
  return lines;
}

/** Whatever stands first of those that may, outside quotes. @param {string} text */
function delimiterOf(text) {
  const first = text.replace(/"[^"]*"/g, "").split("\n", 1)[0];
  return first.match(/[,;\t]/)?.[0] ?? ",";
}
