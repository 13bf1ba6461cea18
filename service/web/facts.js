/**
 * What is known of the model and of the last answer, as lists of terms.
 */

import { byId, element } from "./dom.js";
import { count, duration } from "./wording.js";

const TIERS = {
  bitwise: "bitwise: the same request, the same image, alone and in company",
  numeric: "numeric: the same image up to rounding",
};

/** @param {import("./api.js").ModelCard} card */
export function showModel(card) {
  const { numerics } = card;
  fill(byId("model-facts"), [
    ["Name", card.id],
    ["Revision", code(card.revision)],
    ["Image", `${card.image_size} × ${card.image_size} pixels`],
    ["Classes", String(card.num_classes)],
    ["Work", `${count(card.num_steps, "step")} of ${count(card.bits_per_token, "bit")}`],
    [
      "Precision",
      numerics ? `${numerics.precision}${numerics.is_exact ? "" : ", not exact"}` : "loading …",
    ],
    [
      "Determinism",
      numerics
        ? (TIERS[/** @type {keyof typeof TIERS} */ (numerics.determinism)] ?? numerics.determinism)
        : "loading …",
    ],
  ]);
}

/** @param {import("./api.js").Generation} generation */
export function showAnswer({ id, model_revision, timings, warnings }) {
  const stages = [
    ["In the queue", "queue_s"],
    ["Drawing", "generation_s"],
    ["Decoding", "decode_s"],
    ["Encoding", "encode_s"],
    ["In all", "total_s"],
  ];
  fill(byId("result-facts"), [
    ["Id", code(id)],
    ["Revision", code(model_revision)],
    ...stages
      .filter(([, name]) => name in timings)
      .map(([term, name]) => [term, duration(timings[name])]),
    ...warnings.map((warning) => ["Note", warning]),
  ]);
  byId("result").hidden = false;
}

/** @param {string} text */
function code(text) {
  return element("code", {}, text);
}

/**
 * @param {HTMLElement} list
 * @param {(string | Node)[][]} facts
 */
function fill(list, facts) {
  list.replaceChildren(
    ...facts.map(([term, fact]) =>
      element("div", {}, element("dt", {}, term), element("dd", {}, fact)),
    ),
  );
}
