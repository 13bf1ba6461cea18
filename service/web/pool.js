/**
 * Many requests, a few at a time; whoever is told that the server is busy waits as long as it asks.
 */

import { ApiError, isAbort } from "./api.js";

/** Browsers open six connections to a server; the rest is for searches and other tabs. */
export const MAX_AT_ONCE = 4;
const MAX_TRIES = 6;
const MAX_WAIT_S = 30;

/**
 * Run a task for each item; ends when all have ended, or with the first error.
 * @template T
 * @param {T[]} items
 * @param {(item: T, signal: AbortSignal) => Promise<void>} task
 * @param {AbortSignal} signal
 */
export async function runBounded(items, task, signal) {
  const stop = new AbortController();
  const either = AbortSignal.any([signal, stop.signal]);
  const rest = items.values();
  const work = async () => {
    for (const item of rest) {
      either.throwIfAborted();
      await task(item, either);
    }
  };
  const workers = Array.from({ length: Math.min(MAX_AT_ONCE, items.length) }, async () => {
    try {
      await work();
    } catch (error) {
      stop.abort();
      throw error;
    }
  });
  const ends = await Promise.allSettled(workers);
  signal.throwIfAborted();
  const errors = ends.flatMap((end) => (end.status === "rejected" ? [end.reason] : []));
  if (errors.length) throw errors.find((error) => !isAbort(error)) ?? errors[0];
}

/**
 * Try again while the server is merely busy.
 * @template T
 * @param {() => Promise<T>} attempt
 * @param {AbortSignal} signal
 * @param {() => void} onWait
 */
export async function withPatience(attempt, signal, onWait) {
  for (let tries = 1; ; tries++) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof ApiError && error.isTemporary) || tries === MAX_TRIES) throw error;
      onWait();
      await pause(Math.min(MAX_WAIT_S, error.retryAfterS ?? 1), signal);
    }
  }
}

/**
 * @param {number} seconds
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const onAbort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", onAbort);
      resolve();
    }, seconds * 1000);
    signal.addEventListener("abort", onAbort, { once: true });
  });
}
