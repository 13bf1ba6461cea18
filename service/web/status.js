/**
 * The line that says what happens now: progress, the end, or what went wrong. For those who listen
 * it speaks at turning points and at every quarter, not at every step.
 */

import { byId, element, icon } from "./dom.js";
import { duration, progressText } from "./wording.js";

export class StatusLine {
  constructor() {
    this.line = byId("status");
    this.announcer = byId("announcer");
    this.bar = byId("progress");
    this.failure = byId("failure");
    this.said = "";
  }

  /** @param {string} text */
  announce(text) {
    this.announcer.textContent = text;
  }

  /** @param {string} text */
  begin(text) {
    this.failure.replaceChildren();
    this.said = "";
    this.bar.classList.add("busy");
    this.bar.value = 0;
    this.line.textContent = text;
    this.announce(text);
  }

  /** @param {import("./api.js").Progress} told */
  progress(told) {
    this.bar.value = told.progress;
    this.line.textContent = progressText(told);
    const quarter = Math.floor(told.progress * 4) * 25;
    const turning =
      told.status === "queued" ? progressText({ ...told, eta_s: null }) : `Drawing, ${quarter} %`;
    if (turning !== this.said) this.announce(turning);
    this.said = turning;
  }

  /** @param {string} text */
  end(text) {
    this.bar.classList.remove("busy");
    this.bar.value = 0;
    this.line.textContent = text;
    this.announce(text);
  }

  /**
   * @param {import("./api.js").ApiError | Error} error
   * @param {() => void} onRetry offered where trying again may help
   */
  fail(error, onRetry) {
    this.end("");
    const {
      isTemporary = false,
      retryAfterS = null,
      requestId = null,
      status = 0,
    } = /** @type {any} */ (error);
    const wait = isTemporary && retryAfterS ? ` Try again in ${duration(retryAfterS)}.` : "";
    const text = element("p", {}, element("strong", {}, sentence(error.message)), wait);
    if (requestId) text.append(element("span", { className: "aside" }, ` Request ${requestId}`));
    const parts = [icon("warning"), text];
    if (isTemporary || status === 0) {
      parts.push(
        element("button", { type: "button", className: "quiet", onclick: onRetry }, "Try again"),
      );
    }
    this.failure.replaceChildren(...parts);
  }
}

/** @param {string} text a message, which may begin small and lack its full stop */
export function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
