/**
 * A picture of an image that is not there yet: its grid of tokens, filled as far as they are drawn.
 */

import { drawing } from "./dom.js";

/** Up to here single tokens can be seen, and are told apart by lines. */
const MAX_LINED = 32;

/**
 * @param {number} numSteps tokens of an image, a square number
 * @param {"raster" | "random"} order
 * @returns {{node: SVGElement, draw: (share: number) => void}}
 */
export function tokenRaster(numSteps, order) {
  const side = Math.round(Math.sqrt(numSteps));
  const rows = drawing("rect", { class: "drawn", width: side, height: 0 });
  const row = drawing("rect", { class: "drawn", width: 0, height: 1 });
  const lines = drawing("path", { class: "lines", d: side <= MAX_LINED ? linesPath(side) : "" });
  const node = drawing(
    "svg",
    { class: "raster", viewBox: `0 0 ${side} ${side}`, "aria-hidden": "true" },
    rows,
    row,
    lines,
  );

  /** @param {number} share */
  function draw(share) {
    const drawn = Math.floor(share * side * side + 1e-6);
    if (order === "random") {
      // which tokens are there is known to the seed alone
      rows.setAttribute("height", String(side));
      rows.setAttribute("opacity", share.toFixed(3));
      return;
    }
    const full = Math.floor(drawn / side);
    rows.setAttribute("height", String(full));
    row.setAttribute("y", String(full));
    row.setAttribute("width", String(drawn % side));
  }

  draw(0);
  return { node, draw };
}

/** @param {number} side */
function linesPath(side) {
  const inner = Array.from({ length: side - 1 }, (_, i) => i + 1);
  return inner.map((at) => `M${at} 0V${side}M0 ${at}H${side}`).join("");
}
