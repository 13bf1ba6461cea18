/**
 * The dialog in which a key is given, changed and forgotten. It makes itself: all pages have it.
 */

import { byId, element, icon, tell } from "./dom.js";
import { key, keyProblem, setKey } from "./key.js";

export class KeyDialog {
  /** @param {() => void} onChange called when the key is another one */
  constructor(onChange) {
    this.onChange = onChange;
    this.input = element("input", {
      id: "key",
      type: "password",
      autocomplete: "off",
      spellcheck: false,
      "aria-describedby": "key-note key-problem",
    });
    this.problem = element("p", {
      id: "key-problem",
      className: "problem",
      role: "alert",
      hidden: true,
    });
    this.forget = element(
      "button",
      { type: "button", className: "quiet", id: "key-forget", onclick: () => this.use("") },
      "Forget it",
    );
    this.dialog = element(
      "dialog",
      { id: "key-dialog", "aria-labelledby": "key-title" },
      this.form(),
    );
    document.body.append(this.dialog);
    byId("key-open").addEventListener("click", () => this.open());
    this.refresh();
  }

  form() {
    const close = element(
      "button",
      {
        type: "button",
        className: "quiet square",
        "aria-label": "Close",
        onclick: () => this.dialog.close(),
      },
      icon("close"),
    );
    const form = element(
      "form",
      { noValidate: true },
      element(
        "div",
        { className: "section-head" },
        element("h2", { id: "key-title" }, "API key"),
        close,
      ),
      element(
        "p",
        { id: "key-note" },
        "Needed only where the server asks for one. It is kept in this tab until the tab is closed, and sent to this server alone, as ",
        element("code", {}, "Authorization: Bearer"),
        ".",
      ),
      element("label", { htmlFor: "key" }, "Key"),
      this.input,
      this.problem,
      element(
        "div",
        { className: "dialog-foot" },
        this.forget,
        element("button", { type: "submit", className: "primary" }, "Use this key"),
      ),
    );
    form.addEventListener("submit", (/** @type {Event} */ event) => this.onSubmit(event));
    return form;
  }

  /** @param {string} [problem] why a key is asked for */
  open(problem = "") {
    this.mark(problem);
    this.input.value = key();
    this.forget.hidden = !key();
    if (!this.dialog.open) this.dialog.showModal();
    this.input.select();
  }

  /** @param {string} problem */
  mark(problem) {
    this.input.setAttribute("aria-invalid", String(Boolean(problem)));
    tell(this.problem, problem);
  }

  /** @param {Event} event */
  onSubmit(event) {
    event.preventDefault();
    const given = this.input.value.trim();
    this.mark(keyProblem(given));
    if (!keyProblem(given)) this.use(given);
  }

  /** @param {string} value */
  use(value) {
    setKey(value);
    this.dialog.close();
    this.refresh();
    this.onChange();
  }

  refresh() {
    byId("key-badge").hidden = !key();
  }
}
