// The little of ISO 14496-12 that the page needs: when a fragment begins, and pictures without sound.

/**
 * The boxes inside a part of a buffer.
 * @param {DataView} view
 * @param {number} [from]
 * @param {number} [to]
 * @returns {Generator<{type: string, from: number, to: number}>} `from` is behind the box's head
 */
function* boxes(view, from = 0, to = view.byteLength) {
  let at = from;
  while (at + 8 <= to) {
    let size = view.getUint32(at);
    const type = String.fromCharCode(view.getUint8(at + 4), view.getUint8(at + 5), view.getUint8(at + 6), view.getUint8(at + 7));
    let head = 8;
    if (size === 1 && at + 16 <= to) {
      size = Number(view.getBigUint64(at + 8));
      head = 16;
    } else if (size === 0) {
      size = to - at;
    }
    if (size < head || at + size > to) return;
    yield { type, from: at + head, to: at + size };
    at += size;
  }
}

/** @param {DataView} view @param {string} path types separated by / @param {{from: number, to: number}} [inside] @returns {Generator<{type: string, from: number, to: number}>} */
function* find(view, path, inside = { from: 0, to: view.byteLength }) {
  const [type, ...rest] = path.split("/");
  for (const box of boxes(view, inside.from, inside.to)) {
    if (box.type !== type) continue;
    if (rest.length === 0) yield box;
    else yield* find(view, rest.join("/"), box);
  }
}

/**
 * Ticks a second, by track number.
 * @param {ArrayBuffer} init an initialisation segment
 * @returns {Map<number, number>}
 */
export function timescales(init) {
  const view = new DataView(init);
  /** @type {Map<number, number>} */
  const scales = new Map();
  for (const track of find(view, "moov/trak")) {
    const [tkhd] = find(view, "tkhd", track);
    const [mdhd] = find(view, "mdia/mdhd", track);
    if (!tkhd || !mdhd) continue;
    const id = view.getUint32(tkhd.from + (view.getUint8(tkhd.from) === 1 ? 20 : 12));
    scales.set(id, view.getUint32(mdhd.from + (view.getUint8(mdhd.from) === 1 ? 20 : 12)));
  }
  return scales;
}

/**
 * When a fragment begins, in seconds since 1970: the earliest of its tracks.
 * @param {ArrayBuffer} fragment
 * @param {Map<number, number>} scales
 * @returns {number | undefined}
 */
export function beginning(fragment, scales) {
  const view = new DataView(fragment);
  let earliest = Infinity;
  for (const traf of find(view, "moof/traf")) {
    const [tfhd] = find(view, "tfhd", traf);
    const [tfdt] = find(view, "tfdt", traf);
    if (!tfhd || !tfdt) continue;
    const scale = scales.get(view.getUint32(tfhd.from + 4));
    if (!scale) continue;
    const ticks = view.getUint8(tfdt.from) === 1 ? Number(view.getBigUint64(tfdt.from + 4)) : view.getUint32(tfdt.from + 4);
    earliest = Math.min(earliest, ticks / scale);
  }
  return Number.isFinite(earliest) ? earliest : undefined;
}

/** Whether a fragment holds anything of a track. @param {ArrayBuffer} fragment @param {number} track */
export function holdsTrack(fragment, track) {
  const view = new DataView(fragment);
  return [...find(view, "moof/traf")].some((traf) => trackOf(view, traf) === track);
}

/** Boxes that are looked into when tracks are left out. */
const CONTAINERS = new Set(["moov", "mvex", "moof"]);

/**
 * An initialisation segment or fragment with one track alone.
 * @param {ArrayBuffer} bytes
 * @param {number} track
 * @returns {ArrayBuffer | null} `null`: a fragment that holds nothing of that track
 */
export function onlyTrack(bytes, track) {
  const view = new DataView(bytes);
  const out = new Uint8Array(bytes.byteLength);
  let at = 0;
  let removed = 0;
  let fragments = 0;
  /** @param {number} from @param {number} to */
  const copy = (from, to) => {
    out.set(new Uint8Array(bytes, from, to - from), at);
    at += to - from;
  };
  /** @param {{from: number, to: number}} inside */
  const keep = (inside) => {
    for (const box of boxes(view, inside.from, inside.to)) {
      const head = box.from - 8;
      if (trackOf(view, box) !== undefined && trackOf(view, box) !== track) {
        removed += box.to - head;
      } else if (CONTAINERS.has(box.type)) {
        const start = at;
        copy(head, box.from);
        keep(box);
        new DataView(out.buffer).setUint32(start, at - start);
      } else {
        if (box.type === "traf") fragments += 1;
        copy(head, box.to);
      }
    }
  };
  keep({ from: 0, to: view.byteLength });
  const result = out.buffer.slice(0, at);
  // Samples are found by their distance from the beginning of `moof`, which has become shorter.
  if (removed > 0) shiftSamples(result, removed);
  const isFragment = Boolean(find(view, "moof").next().value);
  return isFragment && fragments === 0 ? null : result;
}

/** The track that a box is about, if it is about one. @param {DataView} view @param {{type: string, from: number, to: number}} box */
function trackOf(view, box) {
  switch (box.type) {
    case "trak": {
      const [tkhd] = find(view, "tkhd", box);
      return tkhd && view.getUint32(tkhd.from + (view.getUint8(tkhd.from) === 1 ? 20 : 12));
    }
    case "traf": {
      const [tfhd] = find(view, "tfhd", box);
      return tfhd && view.getUint32(tfhd.from + 4);
    }
    case "trex":
      return view.getUint32(box.from + 4);
    default:
      return undefined;
  }
}

/** @param {ArrayBuffer} bytes @param {number} by */
function shiftSamples(bytes, by) {
  const view = new DataView(bytes);
  for (const trun of find(view, "moof/traf/trun")) {
    const hasOffset = view.getUint32(trun.from) & 1;
    if (hasOffset) view.setInt32(trun.from + 8, view.getInt32(trun.from + 8) - by);
  }
}
