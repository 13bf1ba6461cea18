/**
 * A text field with a list of matches beneath it: the ARIA pattern "editable combobox with list
 * autocomplete". The focus stays in the field; aria-activedescendant tells which match is meant.
 * What is typed is only ever a search: leaving the field without a choice brings the chosen text back.
 */

import { element } from "./dom.js";

const PAUSE_MS = 120; // between the last key and the search
const PAGE = 8;

/**
 * @template T
 * @typedef {object} Source
 * @property {(query: string, signal: AbortSignal) => Promise<T[]>} search
 * @property {(item: T) => Node[]} render
 * @property {(item: T) => string} text what the field shows when an item is chosen
 * @property {(shown: number, query: string) => string} summary said to those who cannot see the list
 * @property {(item: T) => void} onChoose
 * @property {(error: unknown) => void} onFailure
 */

/** @template T */
export class Combobox {
  /**
   * @param {HTMLInputElement} input
   * @param {HTMLElement} list
   * @param {HTMLElement} status
   * @param {Source<T>} source
   */
  constructor(input, list, status, source) {
    this.input = input;
    this.list = list;
    this.status = status;
    this.source = source;
    /** @type {T[]} */
    this.items = [];
    this.active = -1;
    this.chosenText = "";
    this.isPending = false; // a search is under way, or waits for the next key
    this.choosesFirst = false; // Enter was pressed before the matches had come
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    this.searching = new AbortController();
    input.addEventListener("input", () => this.searchSoon());
    input.addEventListener("keydown", (event) => this.onKey(event));
    input.addEventListener("click", () => this.open());
    input.addEventListener("focus", () => input.select());
    input.addEventListener("blur", () => this.close());
    list.addEventListener("pointerdown", (event) => event.preventDefault()); // the focus stays
    list.addEventListener("click", (event) => this.onClick(event));
  }

  get isOpen() {
    return !this.list.hidden;
  }

  /**
   * Show an item that was chosen elsewhere.
   * @param {string} text
   */
  show(text) {
    this.chosenText = text;
    this.input.value = text;
  }

  /** Open the list with all there is, the chosen item in view. */
  async open() {
    if (this.isOpen || this.input.disabled) return;
    await this.search("");
    const chosen = this.items.findIndex((item) => this.source.text(item) === this.chosenText);
    if (this.isOpen && chosen >= 0) this.activate(chosen);
  }

  /** Close the list; what was typed but not chosen is dropped. */
  close() {
    clearTimeout(this.timer);
    this.searching.abort();
    this.isPending = this.choosesFirst = false;
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
    this.status.textContent = "";
    this.input.value = this.chosenText;
  }

  searchSoon() {
    clearTimeout(this.timer);
    this.isPending = true;
    this.choosesFirst = false;
    this.timer = setTimeout(() => this.search(this.input.value.trim()), PAUSE_MS);
  }

  /** @param {string} query */
  async search(query) {
    this.searching.abort();
    const { signal } = (this.searching = new AbortController());
    this.isPending = true;
    try {
      const items = await this.source.search(query, signal);
      if (signal.aborted) return;
      this.isPending = false;
      this.fill(items, query);
      if (this.choosesFirst && items.length) this.choose(0);
    } catch (error) {
      if (signal.aborted) return;
      this.close();
      this.source.onFailure(error);
    }
  }

  /**
   * @param {T[]} items
   * @param {string} query
   */
  fill(items, query) {
    this.items = items;
    const options = items.map((item, i) =>
      element(
        "li",
        { id: `${this.list.id}-${i}`, role: "option", "aria-selected": "false" },
        ...this.source.render(item),
      ),
    );
    if (!items.length)
      options.push(
        element("li", { className: "none", role: "presentation" }, "Nothing of this name."),
      );
    this.list.replaceChildren(...options);
    this.list.hidden = false;
    this.list.scrollTop = 0;
    this.input.setAttribute("aria-expanded", "true");
    this.status.textContent = this.source.summary(items.length, query);
    this.activate(query && items.length ? 0 : -1);
  }

  /** @param {number} index -1 for none */
  activate(index) {
    this.list.children[this.active]?.setAttribute("aria-selected", "false");
    this.active = index;
    const option = this.list.children[index];
    if (!option) return this.input.removeAttribute("aria-activedescendant");
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", option.id);
  }

  /** @param {number} index */
  choose(index) {
    const item = this.items[index];
    this.show(this.source.text(item));
    this.close();
    this.source.onChoose(item);
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.isComposing || event.ctrlKey || event.metaKey) return;
    const isHandled = event.altKey
      ? this.onAltKey(event.key)
      : this.isOpen
        ? this.onOpenKey(event.key)
        : this.onClosedKey(event.key);
    if (isHandled) {
      event.preventDefault();
      event.stopPropagation();
    }
  }

  /** @param {string} key */
  onAltKey(key) {
    if (key === "ArrowDown") this.open();
    else if (key === "ArrowUp") this.close();
    else return false;
    return true;
  }

  /** @param {string} key */
  onClosedKey(key) {
    if (key === "ArrowDown" || key === "ArrowUp") this.open();
    else if (key === "Enter" && this.isPending) this.choosesFirst = true;
    else if (key === "Escape" && this.input.value !== this.chosenText) this.close();
    else return false;
    return true;
  }

  /** @param {string} key */
  onOpenKey(key) {
    const last = this.items.length - 1;
    const moves = {
      ArrowDown: this.active >= last ? 0 : this.active + 1,
      ArrowUp: this.active <= 0 ? last : this.active - 1,
      PageDown: Math.min(last, this.active + PAGE),
      PageUp: Math.max(0, this.active - PAGE),
    };
    if (key in moves) {
      if (last >= 0) this.activate(moves[/** @type {keyof typeof moves} */ (key)]);
    } else if (key === "Enter") this.onEnter();
    else if (key === "Escape") this.close();
    else if (key === "Tab" && this.active >= 0 && !this.isPending) {
      this.choose(this.active);
      return false; // and the focus moves on
    } else return false;
    return true;
  }

  onEnter() {
    if (this.isPending)
      this.choosesFirst = true; // of what was typed, not of what still stands there
    else if (this.active >= 0) this.choose(this.active);
    else this.close();
  }

  /** @param {MouseEvent} event */
  onClick(event) {
    const option = /** @type {Element} */ (event.target).closest('[role="option"]');
    if (option) this.choose([...this.list.children].indexOf(option));
  }
}
