/**
 * What determines images: the fields of a request, under the names that the request has. Bounds that
 * hold for every model stand here, in words; those of a model are in its card.
 */

import { scheduleProblem } from "./schedule.js";

/** @typedef {import("./api.js").ModelCard} ModelCard */

/**
 * @typedef {object} Settings
 * @property {string} model
 * @property {number} class_id
 * @property {number} num_images
 * @property {number} seed
 * @property {number} guidance_scale
 * @property {number} temperature
 * @property {"raster" | "random"} order
 * @property {number[]} unmask_schedule
 */

export const MAX_SEED = 2 ** 32 - 1;

/** Of the numbers with bounds that no model changes: least, most, and what they are called. */
export const BOUNDS = Object.freeze({
  seed: { min: 0, max: MAX_SEED, name: "A seed", isWhole: true },
  guidance_scale: { min: 1, max: 30, name: "Guidance", isWhole: false },
  temperature: { min: 0, max: 10, name: "Temperature", isWhole: false },
});

const SAMPLING = /** @type {const} */ ([
  "guidance_scale",
  "temperature",
  "order",
  "unmask_schedule",
]);

/**
 * Say what is wrong with a number, or "".
 * @param {keyof typeof BOUNDS} field
 * @param {number} value
 */
export function numberProblem(field, value) {
  const { min, max, name, isWhole } = BOUNDS[field];
  if (
    Number.isFinite(value) &&
    value >= min &&
    value <= max &&
    (!isWhole || Number.isInteger(value))
  ) {
    return "";
  }
  return `${name} is a ${isWhole ? "whole " : ""}number from ${min} to ${max}.`;
}

/**
 * Say what is wrong with settings, field by field; empty if they can be sent.
 * @param {Settings} settings
 * @param {ModelCard} card
 * @returns {Map<string, string>}
 */
export function problemsOf(settings, card) {
  const mostImages = card.limits.max_images;
  const { class_id, num_images } = settings;
  const isClass = Number.isInteger(class_id) && class_id >= 0 && class_id < card.num_classes;
  const isCount = Number.isInteger(num_images) && num_images >= 1 && num_images <= mostImages;
  const found = {
    class_id: isClass ? "" : "Choose a class from the list.",
    num_images: isCount ? "" : `From 1 to ${mostImages} images.`,
    seed: numberProblem("seed", settings.seed),
    guidance_scale: numberProblem("guidance_scale", settings.guidance_scale),
    temperature: numberProblem("temperature", settings.temperature),
    unmask_schedule: scheduleProblem(settings.unmask_schedule, card.bits_per_token, card.max_rounds),
  };
  return new Map(Object.entries(found).filter(([, problem]) => problem));
}

/** @returns {number} a seed that nobody chose */
export function drawSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/**
 * @param {ModelCard} card
 * @param {number} class_id
 * @param {number} seed
 * @returns {Settings} the model's own
 */
export function defaultsOf(card, class_id, seed) {
  return { model: card.id, class_id, num_images: 1, seed, ...card.defaults };
}

/**
 * Leave out what the model would take anyway: what is copied shall be short.
 * @param {Settings} settings
 * @param {ModelCard} card
 * @returns {Partial<Settings>}
 */
export function essentials(settings, card) {
  const { model, class_id, seed, num_images } = settings;
  /** @type {Record<string, any>} */
  const kept = { model, class_id, seed };
  if (num_images > 1) kept.num_images = num_images;
  for (const field of SAMPLING) {
    if (!isSame(settings[field], card.defaults[field])) kept[field] = settings[field];
  }
  return kept;
}

/**
 * @param {unknown} a
 * @param {unknown} b
 */
export function isSame(a, b) {
  return JSON.stringify(a) === JSON.stringify(b);
}

/**
 * Write settings into the part of an address after "#".
 * @param {Settings} settings
 * @param {ModelCard} card
 */
export function toFragment(settings, card) {
  const values = Object.entries(essentials(settings, card)).map(([name, value]) => [
    name,
    String(value),
  ]);
  return `#${new URLSearchParams(values)}`;
}

/**
 * Read what `toFragment` wrote; what is missing is the model's own, and what is wrong stays wrong,
 * to be marked in the form.
 * @param {string} fragment
 * @param {ModelCard[]} cards
 * @returns {Settings | null} null if it names no settings
 */
export function fromFragment(fragment, cards) {
  const values = new URLSearchParams(fragment.replace(/^#/, ""));
  if (!values.has("class_id")) return null;
  const card = cards.find((each) => each.id === values.get("model")) ?? cards[0];
  /** @param {string} name @param {number} otherwise */
  const number = (name, otherwise) =>
    values.has(name) ? Number(values.get(name) || NaN) : otherwise;
  return {
    model: card.id,
    class_id: number("class_id", 0),
    num_images: number("num_images", 1),
    seed: number("seed", drawSeed()),
    guidance_scale: number("guidance_scale", card.defaults.guidance_scale),
    temperature: number("temperature", card.defaults.temperature),
    order:
      values.get("order") === "random"
        ? "random"
        : values.has("order")
          ? "raster"
          : card.defaults.order,
    unmask_schedule:
      values.get("unmask_schedule")?.split(",").map(Number) ?? card.defaults.unmask_schedule,
  };
}
