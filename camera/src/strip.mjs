// Reads the frame number from a picture's strip, as strip.rs does; the geometry is described there.
//
// For browser tests: draw the video into a canvas of any size and give its image data. The module has
// no imports and no effects, so that its text can also be put into a page as it is.

const CELLS = 48;
const START = [1, 0, 1, 1, 0, 0, 1, 0];
const MIN_CONTRAST = 64;

/**
 * The frame number in a picture, or null where there is no readable strip.
 *
 * @param {{data: Uint8ClampedArray | Uint8Array, width: number, height: number}} image
 *   RGBA, as `CanvasRenderingContext2D.getImageData` gives it.
 * @returns {number | null}
 */
export function readStrip({ data, width, height }) {
  const means = [];
  for (let cell = 0; cell < CELLS; cell++) {
    const column = cell % 24;
    const row = Math.floor(cell / 24);
    // The middle half of the cell.
    const left = Math.round(width * (0.4 + (column + 0.25) / 40));
    const right = Math.max(left + 1, Math.round(width * (0.4 + (column + 0.75) / 40)));
    const top = Math.round(height * (41 / 45 + ((row + 0.25) * 2) / 45));
    const bottom = Math.max(top + 1, Math.round(height * (41 / 45 + ((row + 0.75) * 2) / 45)));
    let sum = 0;
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        const at = (y * width + x) * 4;
        sum += (data[at] + data[at + 1] + data[at + 2]) / 3;
      }
    }
    means.push(sum / ((right - left) * (bottom - top)));
  }
  const mean = (/** @type {number} */ bit) => {
    const cells = START.map((b, index) => (b === bit ? means[index] : null)).filter((m) => m !== null);
    return cells.reduce((sum, m) => sum + m, 0) / cells.length;
  };
  const [white, black] = [mean(1), mean(0)];
  if (!(white - black >= MIN_CONTRAST)) return null;
  const bits = means.map((m) => (m > (white + black) / 2 ? 1 : 0));
  if (START.some((bit, index) => bits[index] !== bit)) return null;
  let crc = 0xff;
  for (const bit of bits.slice(8, 40)) {
    const feedback = (crc >> 7) ^ bit;
    crc = ((crc << 1) & 0xff) ^ (feedback ? 0x07 : 0);
  }
  const number = (/** @type {number} */ from, /** @type {number} */ to) =>
    bits.slice(from, to).reduce((value, bit) => value * 2 + bit, 0);
  return number(40, 48) === crc ? number(8, 40) : null;
}
