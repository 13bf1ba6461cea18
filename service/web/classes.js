/**
 * The choice of a class: searched for by the server, which ranks names, WordNet ids and indices, and
 * shown by its usual name.
 */

import { searchClasses } from "./api.js";
import { Combobox } from "./combobox.js";
import { byId, element } from "./dom.js";

/**
 * @typedef {import("./api.js").ClassEntry} ClassEntry
 * @typedef {import("./api.js").ModelCard} ModelCard
 */

const MAX_FOUND = 50;
const MAX_CLASSES = 10000;

export class ClassChooser {
  /**
   * @param {(classId: number) => void} onChoose
   * @param {(error: unknown) => void} onFailure
   */
  constructor(onChoose, onFailure) {
    this.model = "";
    /** @type {ClassEntry[]} in index order */
    this.entries = [];
    /** @type {Map<string, number>} how many classes have a name */
    this.named = new Map();
    this.onChoose = onChoose;
    this.combobox = new Combobox(byId("class_id"), byId("class-list"), byId("class-status"), {
      search: (query, signal) => this.search(query, signal),
      render: (entry) => renderEntry(entry),
      text: (entry) => this.textOf(entry),
      summary: (shown, query) =>
        query ? `${shown} ${shown === 1 ? "match" : "matches"}` : `${shown} classes`,
      onChoose: (entry) => this.choose(entry),
      onFailure,
    });
    byId("class-random").addEventListener("click", () => this.chooseAny());
  }

  /** @param {ModelCard} card */
  async useModel(card) {
    if (this.model === card.id) return;
    const entries = await searchClasses(card.id, "", { limit: MAX_CLASSES });
    this.model = card.id;
    this.entries = entries;
    this.named = new Map();
    for (const { name } of entries) this.named.set(name, (this.named.get(name) ?? 0) + 1);
  }

  /**
   * @param {string} query
   * @param {AbortSignal} signal
   */
  async search(query, signal) {
    return query ? searchClasses(this.model, query, { limit: MAX_FOUND, signal }) : this.entries;
  }

  /** @param {ClassEntry} entry */
  textOf(entry) {
    return this.named.get(entry.name) === 1
      ? entry.name
      : `${entry.name} (${entry.wordnet_id ?? entry.class_id})`;
  }

  /** @param {number} classId */
  show(classId) {
    const entry = this.entries[classId];
    this.combobox.show(entry ? this.textOf(entry) : "");
    byId("class-note").textContent = entry ? idsOf(entry) : "";
  }

  /** @param {ClassEntry} entry */
  choose(entry) {
    this.show(entry.class_id);
    this.onChoose(entry.class_id);
  }

  chooseAny() {
    if (this.entries.length)
      this.choose(this.entries[Math.floor(Math.random() * this.entries.length)]);
  }

  /**
   * Say how a class is called, and what the server understands as it and as no other.
   * @param {number} classId
   */
  describe(classId) {
    const entry = this.entries[classId];
    if (!entry) return { label: String(classId), prompt: String(classId) };
    const isUnique = this.named.get(entry.name) === 1;
    return {
      label: entry.name,
      prompt: isUnique ? entry.name : (entry.wordnet_id ?? String(classId)),
    };
  }
}

/** @param {ClassEntry} entry */
function idsOf({ class_id, wordnet_id }) {
  return wordnet_id ? `${class_id} · ${wordnet_id}` : String(class_id);
}

/** @param {ClassEntry} entry */
function renderEntry(entry) {
  const others = entry.names.slice(1).join(", ");
  return [
    element(
      "span",
      { className: "name" },
      entry.name,
      ...(others ? [element("span", { className: "others" }, others)] : []),
    ),
    element("span", { className: "ids" }, idsOf(entry)),
  ];
}
