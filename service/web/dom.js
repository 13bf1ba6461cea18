/**
 * Elements, made and found. Text is always set as text, so nothing that a server sends becomes markup.
 */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element. Properties that it has are set, others become attributes; functions named on…
 * become listeners; null and undefined are left out.
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name in node) /** @type {any} */ (node)[name] = value;
    else node.setAttribute(name, String(value));
  }
  node.append(...children);
  return node;
}

/**
 * Make an SVG element.
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {...Node} children
 */
export function drawing(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

/** @param {string} name one of the page's symbols, without "i-" */
export function icon(name) {
  return drawing(
    "svg",
    { class: "icon", "aria-hidden": "true" },
    drawing("use", { href: `#i-${name}` }),
  );
}

/**
 * Return the element with this id, which the page must have.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`the page has no element with the id ${id}`);
  return node;
}

/**
 * Show a text in an element, or hide the element if there is none.
 * @param {HTMLElement} node
 * @param {string} text
 */
export function tell(node, text) {
  node.textContent = text;
  node.hidden = !text;
}
