/**
 * A grid of images over two settings: one request for each cell, a few at a time, in reading order.
 */

import { ApiError, generate } from "./api.js";
import { AXIS_NAMES, readValues, suggestValues } from "./axes.js";
import { byId, element, icon, tell } from "./dom.js";
import { MAX_AT_ONCE, runBounded, withPatience } from "./pool.js";
import { tokenRaster } from "./raster.js";
import { pngBlob } from "./tiles.js";
import { count, percent } from "./wording.js";

/**
 * @typedef {import("./axes.js").Axis} Axis
 * @typedef {import("./axes.js").AxisField} AxisField
 * @typedef {import("./api.js").ModelCard} ModelCard
 * @typedef {import("./settings.js").Settings} Settings
 * @typedef {{settings: Settings, button: HTMLButtonElement, draw: (share: number) => void, share: number, image: HTMLImageElement | null, name: string}} Cell
 * @typedef {{columns: Axis, rows: Axis, cells: Cell[][], caption: string}} Grid
 */

const SIDES = /** @type {const} */ (["columns", "rows"]);
const CHOICES = /** @type {const} */ ({
  columns: ["guidance_scale", "temperature"],
  rows: ["temperature", "guidance_scale", "seed"],
});

export class Sweep {
  /** @param {(settings: Settings) => void} onTake called with the settings of the image that was chosen */
  constructor(onTake) {
    this.onTake = onTake;
    /** @type {Grid | null} */
    this.grid = null;
    /** @type {Settings | null} */
    this.around = null;
    this.isTyped = { columns: false, rows: false };
    for (const side of SIDES) {
      const options = CHOICES[side].map((field) =>
        element("option", { value: field }, AXIS_NAMES[field]),
      );
      byId(`${side}-field`).append(...options);
      byId(`${side}-field`).addEventListener("change", () => this.onField(side));
      byId(`${side}-values`).addEventListener("input", () => {
        this.isTyped[side] = true;
        this.read();
      });
    }
    byId("sweep-grid").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) =>
      this.onKey(event),
    );
  }

  /**
   * Suggest axes around these settings, where none were typed.
   * @param {Settings} settings
   */
  suggest(settings) {
    this.around = settings;
    for (const side of SIDES) {
      if (this.isTyped[side]) continue;
      const field = this.fieldOf(side);
      byId(`${side}-values`).value = suggestValues(field, settings[field]).join(", ");
    }
    this.read();
  }

  /** @param {"columns" | "rows"} side @returns {AxisField} */
  fieldOf(side) {
    return byId(`${side}-field`).value;
  }

  /** @param {"columns" | "rows"} side whose field was changed; the other makes room */
  onField(side) {
    const other = side === "columns" ? "rows" : "columns";
    this.isTyped[side] = false;
    if (this.fieldOf("rows") === this.fieldOf("columns")) {
      byId(`${other}-field`).value = CHOICES[other].find((field) => field !== this.fieldOf(side));
      this.isTyped[other] = false;
    }
    if (this.around) this.suggest(this.around);
  }

  /** @returns {{columns: Axis, rows: Axis} | null} null if a problem is marked */
  read() {
    const [columns, rows] = SIDES.map((side) => {
      const field = this.fieldOf(side);
      const { values, problem } = readValues(field, byId(`${side}-values`).value);
      tell(byId(`${side}-problem`), problem);
      byId(`${side}-values`).setAttribute("aria-invalid", String(Boolean(problem)));
      return { field, values, problem };
    });
    const isRight = !columns.problem && !rows.problem;
    const images = count(columns.values.length * rows.values.length, "image");
    byId("sweep-note").textContent = isRight
      ? `${images}, ${MAX_AT_ONCE} at a time. All else is as in the settings.`
      : "";
    return isRight ? { columns, rows } : null;
  }

  focusProblem() {
    byId(byId("columns-problem").hidden ? "rows-values" : "columns-values").focus();
  }

  /**
   * Draw the whole grid.
   * @param {Settings} settings
   * @param {ModelCard} card
   * @param {string} label name of the class
   * @param {AbortSignal} signal
   * @param {(told: import("./api.js").Progress) => void} onProgress
   * @returns {Promise<{numDrawn: number, numFailed: number}>}
   */
  async run(settings, card, label, signal, onProgress) {
    const axes = /** @type {{columns: Axis, rows: Axis}} */ (this.read());
    const started = performance.now();
    this.show(axes, settings, card, label);
    const cells = /** @type {Grid} */ (this.grid).cells.flat();
    const report = () => onProgress(overall(cells, (performance.now() - started) / 1000));
    try {
      report();
      await runBounded(cells, (cell, either) => fill(cell, either, report), signal);
    } finally {
      for (const cell of cells) if (!cell.image) cell.button.classList.add("stopped");
    }
    const numDrawn = cells.filter((cell) => cell.image).length;
    byId("sweep-foot").hidden = numDrawn < cells.length;
    return { numDrawn, numFailed: cells.length - numDrawn };
  }

  /**
   * @param {{columns: Axis, rows: Axis}} axes
   * @param {Settings} settings
   * @param {ModelCard} card
   * @param {string} label
   */
  show({ columns, rows }, settings, card, label) {
    byId("sweep-foot").hidden = true;
    const cells = rows.values.map((row) =>
      columns.values.map((column) =>
        this.cell(
          { ...settings, num_images: 1, [columns.field]: column, [rows.field]: row },
          card,
          columns,
          rows,
        ),
      ),
    );
    cells[0][0].button.tabIndex = 0;
    const caption = `${label}: ${AXIS_NAMES[columns.field]} × ${AXIS_NAMES[rows.field]}`;
    this.grid = { columns, rows, cells, caption };
    byId("sweep-grid").classList.toggle("pixelated", card.image_size <= 128);
    byId("sweep-grid").replaceChildren(tableOf(this.grid));
  }

  /**
   * @param {Settings} settings
   * @param {ModelCard} card
   * @param {Axis} columns
   * @param {Axis} rows
   * @returns {Cell}
   */
  cell(settings, card, columns, rows) {
    const { node, draw } = tokenRaster(card.num_steps, settings.order);
    const name = [columns, rows]
      .map(({ field }) => `${AXIS_NAMES[field]} ${settings[field]}`)
      .join(", ");
    const button = element(
      "button",
      {
        type: "button",
        className: "cell",
        tabIndex: -1,
        "aria-disabled": "true",
        "aria-label": `${name}: not drawn yet`,
      },
      node,
    );
    /** @type {Cell} */
    const cell = { settings, button, draw, share: 0, image: null, name };
    button.addEventListener("click", () => cell.image && this.onTake(settings));
    return cell;
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    const cells = this.grid?.cells;
    const at = cells
      ?.flatMap((row, y) => row.map((cell, x) => ({ cell, x, y })))
      .find(({ cell }) => cell.button === event.target);
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[
      event.key
    ];
    if (!cells || !at || !step) return;
    const next = cells[at.y + step[1]]?.[at.x + step[0]];
    event.preventDefault();
    if (!next) return;
    at.cell.button.tabIndex = -1;
    next.button.tabIndex = 0;
    next.button.focus();
  }
}

/**
 * Draw one cell. What goes wrong with it alone is said in it.
 * @param {Cell} cell
 * @param {AbortSignal} signal
 * @param {() => void} report
 */
async function fill(cell, signal, report) {
  try {
    await withPatience(
      () => drawCell(cell, signal, report),
      signal,
      () => cell.button.setAttribute("aria-label", `${cell.name}: waiting, the server is busy`),
    );
  } catch (error) {
    if (!(error instanceof ApiError) || error.concernsAll) throw error;
    cell.button.replaceChildren(icon("warning"));
    cell.button.title = error.message;
    cell.button.setAttribute("aria-label", `${cell.name}: ${error.message}`);
  }
  cell.share = 1;
  report();
}

/**
 * @param {Cell} cell
 * @param {AbortSignal} signal
 * @param {() => void} report
 */
async function drawCell(cell, signal, report) {
  for await (const { event, data } of generate(cell.settings, signal)) {
    if (event === "progress") {
      cell.share = data.progress;
      cell.draw(data.progress);
      cell.button.setAttribute("aria-label", `${cell.name}: ${percent(data.progress)}`);
      report();
    } else if (event === "completed") {
      const src = URL.createObjectURL(pngBlob(data.data[0].b64_json));
      cell.image = element("img", { alt: "", src, onload: () => URL.revokeObjectURL(src) });
      cell.button.replaceChildren(/** @type {HTMLImageElement} */ (cell.image));
      cell.button.removeAttribute("aria-disabled");
      cell.button.setAttribute("aria-label", `${cell.name}. Take these settings over`);
      cell.button.title = cell.name;
    }
  }
}

/**
 * @param {Cell[]} cells
 * @param {number} elapsedS
 * @returns {import("./api.js").Progress}
 */
function overall(cells, elapsedS) {
  const progress = cells.reduce((sum, cell) => sum + cell.share, 0) / cells.length;
  const eta_s = progress > 0 ? (elapsedS * (1 - progress)) / progress : null;
  return { status: "running", progress, eta_s, queue_position: null };
}

/** @param {Grid} grid */
function tableOf({ columns, rows, cells, caption }) {
  const heads = columns.values.map((value) => element("th", { scope: "col" }, String(value)));
  const body = rows.values.map((value, y) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, String(value)),
      ...cells[y].map(({ button }) => element("td", {}, button)),
    ),
  );
  const table = element(
    "table",
    { className: "grid", role: "grid" },
    element("caption", {}, caption),
    element(
      "thead",
      {},
      element(
        "tr",
        {},
        element(
          "td",
          { className: "corner" },
          `${AXIS_NAMES[rows.field]} ↓`,
          element("br"),
          `${AXIS_NAMES[columns.field]} →`,
        ),
        ...heads,
      ),
    ),
    element("tbody", {}, ...body),
  );
  table.style.setProperty("--columns", String(columns.values.length));
  return table;
}
