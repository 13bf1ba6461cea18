/**
 * The axes of a sweep: which field varies, over which values.
 */

import { BOUNDS, MAX_SEED, numberProblem } from "./settings.js";

/** @typedef {"guidance_scale" | "temperature" | "seed"} AxisField */
/** @typedef {{field: AxisField, values: number[]}} Axis */

export const AXIS_NAMES = Object.freeze({
  guidance_scale: "Guidance",
  temperature: "Temperature",
  seed: "Seed",
});

export const MAX_VALUES = 12;
const AROUND = [0.5, 0.75, 1, 1.5, 2];
const NUM_SEEDS = 4;

/**
 * Read the values that somebody typed: numbers between commas or spaces.
 * @param {AxisField} field
 * @param {string} text
 * @returns {{values: number[], problem: string}}
 */
export function readValues(field, text) {
  const values = text
    .split(/[\s,;]+/)
    .filter(Boolean)
    .map(Number);
  if (!values.length) return { values, problem: "Give at least one value." };
  if (values.length > MAX_VALUES)
    return { values, problem: `At most ${MAX_VALUES} values; there are ${values.length}.` };
  const wrong = values.map((value) => numberProblem(field, value)).find(Boolean);
  if (wrong) return { values, problem: wrong };
  const isTwice = new Set(values).size < values.length;
  return { values, problem: isTwice ? "A value stands there twice." : "" };
}

/**
 * Suggest values around where a setting stands.
 * @param {AxisField} field
 * @param {number} at
 */
export function suggestValues(field, at) {
  const { min, max } = BOUNDS[field];
  const centre = Number.isFinite(at) ? Math.min(max, Math.max(min, at)) : min;
  if (field === "seed")
    return Array.from({ length: NUM_SEEDS }, (_, i) => (centre + i) % (MAX_SEED + 1));
  const spread = AROUND.map((factor) =>
    Math.min(max, Math.max(min, Math.round(centre * factor * 10) / 10)),
  );
  return [...new Set(spread)];
}
