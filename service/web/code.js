/**
 * The panel with the code: which form it has, and a button that copies it.
 */

import { byId } from "./dom.js";
import { curlCode, openaiCode, pythonCode } from "./snippets.js";
import { toFragment } from "./settings.js";
import { connectTabs } from "./tabs.js";

const COPIED_MS = 2000;

/**
 * @typedef {import("./settings.js").Settings} Settings
 * @typedef {import("./api.js").ModelCard} ModelCard
 * @typedef {import("./snippets.js").Place} Place
 * @type {Record<string, (settings: Settings, card: ModelCard, place: Place) => string>}
 */
const WRITERS = {
  "tab-curl": curlCode,
  "tab-python": pythonCode,
  "tab-openai": openaiCode,
  "tab-link": (settings, card, { url }) => `${url}/${toFragment(settings, card)}`,
};

export class CodePanel {
  constructor() {
    this.snippet = byId("snippet");
    /** @type {[Settings, ModelCard, Place] | null} */
    this.shown = null;
    this.tabs = connectTabs(byId("languages"), (tab) => {
      byId("code-panel").setAttribute("aria-labelledby", tab.id);
      this.refresh();
    });
    byId("copy").addEventListener("click", () => this.copy());
  }

  /**
   * @param {Settings} settings
   * @param {ModelCard} card
   * @param {Place} place
   */
  show(settings, card, place) {
    this.shown = [settings, card, place];
    this.refresh();
  }

  refresh() {
    if (this.shown) this.snippet.textContent = WRITERS[this.tabs.selected()](...this.shown);
  }

  async copy() {
    const label = byId("copy").querySelector("span");
    label.textContent = (await isCopied(this.snippet)) ? "Copied" : "Selected: press Ctrl C";
    byId("announcer").textContent = label.textContent;
    setTimeout(() => (label.textContent = "Copy"), COPIED_MS);
  }
}

/**
 * Copy an element's text; where the browser forbids that (without HTTPS, say), select it instead.
 * @param {HTMLElement} node
 */
async function isCopied(node) {
  try {
    await navigator.clipboard.writeText(node.textContent ?? "");
    return true;
  } catch {
    getSelection()?.selectAllChildren(node);
    return false;
  }
}
