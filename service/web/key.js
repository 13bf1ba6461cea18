/**
 * The API key of this tab: kept in its session storage, gone with the tab, never part of a page's
 * address, of copied code or of the history.
 */

const STORE = "bar-serve.key";

let current = read();

function read() {
  try {
    return sessionStorage.getItem(STORE) ?? "";
  } catch {
    return ""; // storage is blocked: the key lasts as long as the page
  }
}

/** @returns {string} "" without one */
export function key() {
  return current;
}

/** @param {string} value "" forgets it */
export function setKey(value) {
  current = value;
  try {
    if (value) sessionStorage.setItem(STORE, value);
    else sessionStorage.removeItem(STORE);
  } catch {
    /* as above */
  }
}

/** @returns {Record<string, string>} the headers that carry the key */
export function keyHeaders() {
  return current ? { authorization: `Bearer ${current}` } : {};
}

/**
 * Say what is wrong with a key that could not even be sent: a header takes visible ASCII alone.
 * @param {string} value
 */
export function keyProblem(value) {
  if (!value) return "Type or paste a key.";
  return /^[\x21-\x7e]+$/.test(value) ? "" : "A key has neither spaces nor special letters.";
}
