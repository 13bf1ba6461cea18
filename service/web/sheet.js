/**
 * A sweep as one picture to keep: the images, their axes and what they have in common, on white.
 */

import { AXIS_NAMES } from "./axes.js";

const MAX_CELL = 256;
const MIN_CELL = 96;
const GAP = 4;
const HEAD = 64;
const SIDE = 96;
const INK = "#1d1c1a";
const MUTED = "#67635b";

/**
 * @param {import("./sweep.js").Grid} grid whose cells all have images
 * @returns {Promise<Blob>}
 */
export function drawSheet(grid) {
  const { columns, rows, cells, caption } = grid;
  const size = cellSize(/** @type {HTMLImageElement} */ (cells[0][0].image).naturalWidth);
  const canvas = document.createElement("canvas");
  canvas.width = SIDE + columns.values.length * (size + GAP) + GAP;
  canvas.height = HEAD + rows.values.length * (size + GAP) + GAP;
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingEnabled = false; // sizes are whole multiples
  cells.forEach((row, y) =>
    row.forEach(({ image }, x) =>
      pen.drawImage(
        /** @type {HTMLImageElement} */ (image),
        SIDE + x * (size + GAP),
        HEAD + y * (size + GAP),
        size,
        size,
      ),
    ),
  );
  writeLabels(pen, grid, size);
  pen.fillStyle = INK;
  pen.font = "600 14px system-ui, sans-serif";
  pen.textAlign = "left";
  pen.fillText(caption, 12, 24);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) =>
      blob ? resolve(blob) : reject(new Error("the picture is too large for this browser")),
    );
  });
}

/** @param {number} width of an image; small ones grow by a whole factor */
function cellSize(width) {
  return width >= MIN_CELL ? Math.min(width, MAX_CELL) : width * Math.ceil(MIN_CELL / width);
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {import("./sweep.js").Grid} grid
 * @param {number} size
 */
function writeLabels(pen, { columns, rows }, size) {
  pen.fillStyle = MUTED;
  pen.font = "12px system-ui, sans-serif";
  pen.fillText(`${AXIS_NAMES[columns.field]} →`, SIDE, 40);
  pen.fillText(`${AXIS_NAMES[rows.field]} ↓`, 12, HEAD - 8);
  pen.textAlign = "center";
  columns.values.forEach((value, x) =>
    pen.fillText(String(value), SIDE + x * (size + GAP) + size / 2, HEAD - 8),
  );
  pen.textAlign = "right";
  rows.values.forEach((value, y) =>
    pen.fillText(String(value), SIDE - 12, HEAD + y * (size + GAP) + size / 2 + 4),
  );
}
