/**
 * Numbers in words: one way for the whole page.
 */

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 0.0095) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
}

/** @param {number} share */
export function percent(share) {
  return `${Math.floor(share * 100 + 1e-9)} %`;
}

/** @param {number} n */
export function ordinal(n) {
  const tens = n % 100;
  const suffix = tens >= 11 && tens <= 13 ? "th" : (["th", "st", "nd", "rd"][n % 10] ?? "th");
  return `${n}${suffix}`;
}

/**
 * @param {number} n
 * @param {string} noun in the singular, with a regular plural
 */
export function count(n, noun) {
  return `${n} ${noun}${n === 1 ? "" : "s"}`;
}

/**
 * Say how far a job is.
 * @param {import("./api.js").Progress} told
 */
export function progressText({ status, progress, eta_s, queue_position }) {
  const left = eta_s === null ? "" : ` · ${duration(eta_s)} left`;
  if (status === "queued") {
    return `Queued${queue_position ? `, ${ordinal(queue_position)} in line` : ""}${left}`;
  }
  return `Drawing · ${percent(progress)}${left}`;
}
