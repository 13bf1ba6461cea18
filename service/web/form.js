/**
 * The form of the settings: reads and writes them, marks what is wrong with a field beside it.
 */

import { byId, element, tell } from "./dom.js";
import { evenSchedule, readSchedule, total } from "./schedule.js";
import { BOUNDS, defaultsOf, drawSeed, isSame, problemsOf } from "./settings.js";
import { count } from "./wording.js";

/**
 * @typedef {import("./api.js").ModelCard} ModelCard
 * @typedef {import("./settings.js").Settings} Settings
 */

const NUMBERS = /** @type {const} */ (["num_images", "seed", "guidance_scale", "temperature"]);
const RESTORABLE = /** @type {const} */ (["guidance_scale", "temperature", "unmask_schedule"]);
const EVEN_ROUNDS = [1, 2, 4, 8];

/** What a refusal may call a field of the form. */
const FIELD_OF_PARAM = new Map([
  ["class", "class_id"],
  ["class_ids", "class_id"],
  ["prompt", "class_id"],
  ["n", "num_images"],
]);

export class SettingsForm {
  /**
   * @param {HTMLFormElement} form
   * @param {() => void} onChange called after every change, by people or by `write`
   */
  constructor(form, onChange) {
    this.form = form;
    this.onChange = onChange;
    /** @type {ModelCard | null} */
    this.card = null;
    this.classId = 0; // the class's field shows a name: its index is here
    /** @type {Map<string, string>} what the server refused, until the field changes */
    this.refused = new Map();
    form.addEventListener("input", (event) =>
      this.onInput(/** @type {HTMLElement} */ (event.target)),
    );
    byId("seed-random").addEventListener("click", () => this.setSeed(drawSeed()));
    byId("seed-keep").addEventListener("click", () => this.keepSeed(!this.isSeedKept));
    for (const field of RESTORABLE) {
      this.part(field, ".restore").addEventListener("click", () => this.restore(field));
    }
  }

  /**
   * @param {string} field
   * @param {string} selector
   * @returns {any}
   */
  part(field, selector) {
    return this.form.querySelector(`[data-field="${field}"] ${selector}`);
  }

  /** Whether the next images have the seed that stands there, too. */
  get isSeedKept() {
    return byId("seed-keep").getAttribute("aria-pressed") === "true";
  }

  /** @returns {Settings} as they stand, right or wrong */
  read() {
    const order = /** @type {RadioNodeList} */ (this.form.elements.namedItem("order")).value;
    const [num_images, seed, guidance_scale, temperature] = NUMBERS.map((field) => {
      const { value } = byId(field);
      return value === "" ? NaN : Number(value);
    });
    return {
      model: this.card?.id ?? "",
      class_id: this.classId,
      num_images,
      seed,
      guidance_scale,
      temperature,
      order: order === "random" ? "random" : "raster",
      unmask_schedule: readSchedule(byId("unmask_schedule").value),
    };
  }

  /**
   * @param {ModelCard} card of the model that is meant from now on
   */
  setCard(card) {
    this.card = card;
    byId("num_images").max = card.limits.max_images;
    const rounds = EVEN_ROUNDS.filter((n) => n <= (card.max_rounds ?? card.bits_per_token));
    byId("even-rounds").replaceChildren(
      ...rounds.map((n) => this.evenButton(n, card.bits_per_token)),
    );
  }

  /**
   * @param {number} numRounds
   * @param {number} bitsPerToken
   */
  evenButton(numRounds, bitsPerToken) {
    const label = count(numRounds, "even round");
    const onclick = () => this.writeField("unmask_schedule", evenSchedule(bitsPerToken, numRounds));
    return element(
      "button",
      { type: "button", title: label, "aria-label": label, onclick },
      String(numRounds),
    );
  }

  /** @param {Settings} settings of the model whose card is set */
  write(settings) {
    this.classId = settings.class_id;
    for (const field of NUMBERS)
      byId(field).value = Number.isNaN(settings[field]) ? "" : String(settings[field]);
    byId("unmask_schedule").value = settings.unmask_schedule.join(", ");
    for (const radio of this.form.querySelectorAll('input[name="order"]')) {
      const input = /** @type {HTMLInputElement} */ (radio);
      input.checked = input.value === settings.order;
    }
    this.refused.clear();
    this.refresh();
  }

  /** Go back to the model's own settings; class and seed stay. */
  restoreAll() {
    if (this.card) this.write(defaultsOf(this.card, this.classId, this.read().seed || 0));
  }

  /** @param {typeof RESTORABLE[number]} field */
  restore(field) {
    if (this.card) this.writeField(field, this.card.defaults[field]);
    byId(field).focus(); // the button hides itself
  }

  /**
   * @param {string} field
   * @param {number | number[]} value
   */
  writeField(field, value) {
    byId(field).value = Array.isArray(value) ? value.join(", ") : String(value);
    this.refused.delete(field);
    this.refresh();
  }

  /** @param {number} seed */
  setSeed(seed) {
    this.writeField("seed", seed);
  }

  /** @param {boolean} isKept */
  keepSeed(isKept) {
    const button = byId("seed-keep");
    button.setAttribute("aria-pressed", String(isKept));
    button.querySelector("use").setAttribute("href", isKept ? "#i-lock" : "#i-unlock");
  }

  /** @param {number} classId */
  setClass(classId) {
    this.classId = classId;
    this.refused.delete("class_id");
    this.refresh();
  }

  /** @param {HTMLElement} target */
  onInput(target) {
    const field = /** @type {HTMLElement | null} */ (target.closest("[data-field]"))?.dataset.field;
    if (!field || field === "class_id") return; // typing there is a search
    if (target instanceof HTMLInputElement && target.type === "range")
      byId(field).value = target.value;
    if (field === "seed") this.keepSeed(true); // whoever types a seed wants it
    this.refused.delete(field);
    this.refresh();
  }

  /** Bring everything that follows from the values up to date. */
  refresh() {
    if (!this.card) return;
    const settings = this.read();
    for (const field of /** @type {const} */ (["guidance_scale", "temperature"])) {
      const range = this.part(field, 'input[type="range"]');
      const value = Number.isFinite(settings[field]) ? settings[field] : this.card.defaults[field];
      const { min, max } = BOUNDS[field];
      range.value = String(value);
      range.style.setProperty(
        "--share",
        String((Math.min(max, Math.max(min, value)) - min) / (max - min)),
      );
    }
    for (const field of RESTORABLE) this.offerDefault(field, settings);
    this.drawRounds(settings.unmask_schedule);
    this.showProblems(this.problems());
    this.onChange();
  }

  /**
   * @param {typeof RESTORABLE[number]} field
   * @param {Settings} settings
   */
  offerDefault(field, settings) {
    const own = /** @type {ModelCard} */ (this.card).defaults[field];
    const button = this.part(field, ".restore");
    button.hidden = isSame(settings[field], own);
    button.textContent = `back to ${Array.isArray(own) ? own.join(", ") : own}`;
  }

  /** @param {number[]} schedule */
  drawRounds(schedule) {
    const bits = /** @type {ModelCard} */ (this.card).bits_per_token;
    const isShown = schedule.length <= bits && schedule.every((each) => each > 0);
    const parts = isShown
      ? schedule.map((each) => {
          const part = element("span");
          part.style.flexGrow = String(each);
          return part;
        })
      : [];
    byId("rounds").replaceChildren(...parts);
    byId("schedule-note").textContent = isShown
      ? `${total(schedule)} of ${bits} bits`
      : `${bits} bits in all`;
  }

  /** @returns {Map<string, string>} what is wrong, by field */
  problems() {
    if (!this.card) return new Map([["model", "No model is known yet."]]);
    return new Map([...this.refused, ...problemsOf(this.read(), this.card)]);
  }

  /** @param {Map<string, string>} problems */
  showProblems(problems) {
    for (const node of this.form.querySelectorAll(".problem")) {
      const field = node.id.replace(/-problem$/, "");
      const problem = problems.get(field) ?? "";
      tell(/** @type {HTMLElement} */ (node), problem);
      const input = document.getElementById(field) ?? this.part(field, "input");
      input.setAttribute("aria-invalid", String(Boolean(problem)));
    }
  }

  /**
   * Mark the field that the server refused.
   * @param {string} param
   * @param {string} message
   * @returns {boolean} whether the form has it
   */
  refuse(param, message) {
    const field = FIELD_OF_PARAM.get(param) ?? param;
    if (!this.part(field, ".problem")) return false;
    this.refused.set(field, message);
    this.showProblems(this.problems());
    this.focusProblem();
    return true;
  }

  /** Bring the first field with a problem into view, and the focus to it. */
  focusProblem() {
    const problem = [...this.form.querySelectorAll(".problem")].find(
      (node) => !(/** @type {HTMLElement} */ (node).hidden),
    );
    if (!problem) return;
    problem.closest("details")?.setAttribute("open", "");
    const field = problem.id.replace(/-problem$/, "");
    (document.getElementById(field) ?? this.part(field, "input")).focus();
  }
}
