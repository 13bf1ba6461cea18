/**
 * Keys that act anywhere on the page, and the dialog that lists them. Those of a single key rest
 * while something is typed, and can be turned off: speech input triggers them by accident.
 */

import { byId, element } from "./dom.js";

const STORE = "bar-serve.single-keys";
const IS_MAC = /Mac|iPhone|iPad/.test(navigator.platform);

export const RUN_KEYS = IS_MAC ? ["⌘", "Return"] : ["Ctrl", "Enter"];

/** @typedef {{keys: string[], does: string, run?: () => void}} Shortcut one key with `run` is single */

export class Shortcuts {
  /**
   * @param {Shortcut[]} shortcuts
   * @param {{onRun: () => void, onCancel: () => void}} always
   */
  constructor(shortcuts, { onRun, onCancel }) {
    this.singles = new Map(
      shortcuts.filter(({ run }) => run).map(({ keys, run }) => [keys[0].toLowerCase(), run]),
    );
    this.onRun = onRun;
    this.onCancel = onCancel;
    byId("key-table").append(
      ...shortcuts.map(({ keys, does }) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, ...keys.map((name) => element("kbd", {}, name))),
          element("td", {}, does),
        ),
      ),
    );
    byId("single-keys").checked = read();
    byId("single-keys").addEventListener("change", () => write(byId("single-keys").checked));
    byId("help-open").addEventListener("click", () => this.open());
    document.addEventListener("keydown", (event) => this.onKey(event));
    for (const button of document.querySelectorAll("[data-close]")) {
      button.addEventListener("click", () => button.closest("dialog")?.close());
    }
  }

  open() {
    byId("help-dialog").showModal();
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]"))
      return;
    const run = this.find(event);
    if (!run) return;
    event.preventDefault();
    run();
  }

  /** @param {KeyboardEvent} event */
  find(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return this.onRun;
    if (event.ctrlKey || event.metaKey || event.altKey) return undefined;
    if (event.key === "Escape") return this.onCancel;
    if (isTyping(event.target) || !byId("single-keys").checked) return undefined;
    return this.singles.get(event.key.toLowerCase());
  }
}

/** @param {EventTarget | null} target */
function isTyping(target) {
  if (target instanceof HTMLInputElement)
    return !["range", "radio", "checkbox"].includes(target.type);
  return target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement;
}

function read() {
  try {
    return localStorage.getItem(STORE) !== "off";
  } catch {
    return true; // storage is blocked: the choice lasts as long as the page
  }
}

/** @param {boolean} isOn */
function write(isOn) {
  try {
    localStorage.setItem(STORE, isOn ? "on" : "off");
  } catch {
    /* as above */
  }
}
