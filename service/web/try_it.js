/**
 * A form that sends a request to one route and shows what comes back.
 */

import { element, icon } from "./dom.js";
import { keyHeaders } from "./key.js";
import { resolve } from "./schemas.js";

/** @typedef {any} Operation of an OpenAPI document */
/** @typedef {{name: string, place: string, input: HTMLInputElement}} Given a parameter that is filled in */

/**
 * @param {string} method
 * @param {string} path
 * @param {Operation} operation
 * @param {any} api the document
 * @returns {HTMLElement}
 */
export function tryIt(method, path, operation, api) {
  const given = parametersOf(operation);
  const body = bodyOf(operation, api);
  const accept = acceptOf(operation);
  const answer = element("div", { className: "answer" });
  answer.setAttribute("aria-live", "polite");
  const send = element("button", { type: "submit" }, "Send");
  const form = element(
    "form",
    { className: "try", noValidate: true },
    ...given.map(({ name, input }) => element("label", {}, name, input)),
    ...(accept
      ? [
          element(
            "label",
            {},
            "Accept",
            element("div", { className: "select" }, accept, icon("down")),
          ),
        ]
      : []),
    ...(body ? [element("label", { className: "wide" }, "Body", body)] : []),
    send,
  );
  form.addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    send.disabled = true;
    answer.replaceChildren(element("p", { className: "aside" }, "Waiting for the answer …"));
    answer.replaceChildren(
      ...(await exchange(method, addressOf(path, given), {
        headers: headersOf(given, accept, body),
        body: contentOf(body),
      })),
    );
    send.disabled = false;
  });
  return element("details", {}, element("summary", {}, icon("down"), "Try it"), form, answer);
}

/** @param {Operation} operation @returns {Given[]} */
function parametersOf(operation) {
  return (operation.parameters ?? []).map((/** @type {any} */ { name, in: place, schema }) => {
    const fallback = schema.default ?? "";
    return {
      name,
      place,
      input: element("input", {
        type: "text",
        autocomplete: "off",
        spellcheck: false,
        placeholder: String(fallback),
      }),
    };
  });
}

/**
 * @param {Operation} operation
 * @param {any} api
 * @returns {HTMLTextAreaElement | HTMLInputElement | null}
 */
function bodyOf(operation, api) {
  const [[type, { schema }]] = Object.entries(operation.requestBody?.content ?? { "": {} });
  if (!type) return null;
  if (type !== "application/json") return element("input", { type: "file", accept: type });
  const example =
    operation.requestBody.content[type].example ?? resolve(schema, api).examples?.[0] ?? {};
  return element("textarea", {
    rows: 6,
    spellcheck: false,
    value: JSON.stringify(example, null, 2),
  });
}

/** @param {Operation} operation @returns {HTMLSelectElement | null} */
function acceptOf(operation) {
  const types = Object.keys(operation.responses["200"]?.content ?? {});
  if (types.length < 2) return null;
  return element("select", {}, ...types.map((type) => element("option", { value: type }, type)));
}

/**
 * @param {string} path
 * @param {Given[]} given
 */
function addressOf(path, given) {
  let filled = path.replace(/^\//, ""); // relative to the page, as everything
  const query = new URLSearchParams();
  for (const { name, place, input } of given) {
    if (place === "path") filled = filled.replace(`{${name}}`, encodeURIComponent(input.value));
    else if (place === "query" && input.value) query.set(name, input.value);
  }
  return query.size ? `${filled}?${query}` : filled;
}

/**
 * @param {Given[]} given
 * @param {HTMLSelectElement | null} accept
 * @param {HTMLTextAreaElement | HTMLInputElement | null} body
 */
function headersOf(given, accept, body) {
  const headers = new Headers(keyHeaders());
  if (accept) headers.set("accept", accept.value);
  if (body)
    headers.set(
      "content-type",
      body instanceof HTMLTextAreaElement ? "application/json" : body.accept,
    );
  for (const { name, place, input } of given)
    if (place === "header" && input.value) headers.set(name, input.value);
  return headers;
}

/** @param {HTMLTextAreaElement | HTMLInputElement | null} body */
function contentOf(body) {
  return body instanceof HTMLInputElement ? body.files?.[0] : body?.value;
}

/**
 * @param {string} method
 * @param {string} address
 * @param {RequestInit} options
 * @returns {Promise<Node[]>} what came back
 */
async function exchange(method, address, options) {
  try {
    const reply = await fetch(new URL(address, document.baseURI), {
      method: method.toUpperCase(),
      ...options,
    });
    const status = element("p", {}, element("strong", {}, `${reply.status} ${reply.statusText}`));
    const type = reply.headers.get("content-type") ?? "";
    if (type.startsWith("image/"))
      return [status, shown([URL.createObjectURL(await reply.blob())])];
    return [status, ...textParts(await reply.text())];
  } catch (error) {
    return [element("p", {}, `No answer: ${/** @type {Error} */ (error).message}`)];
  }
}

/**
 * Show a text, and the images that it carries as images.
 * @param {string} text
 */
function textParts(text) {
  const format = /"output_format":\s*"(\w+)"/.exec(text)?.[1] ?? "png";
  /** @type {string[]} */
  const images = [];
  const short = text.replace(/"b64_json":\s*"([^"]+)"/g, (_, data) => {
    images.push(`data:image/${format};base64,${data}`);
    return `"b64_json": "… ${data.length} characters"`;
  });
  return [
    ...(images.length ? [shown(images)] : []),
    element("pre", { tabIndex: 0 }, pretty(short)),
  ];
}

/** @param {string[]} sources */
function shown(sources) {
  return element(
    "div",
    { className: "images" },
    ...sources.map((src, i) => element("img", { src, alt: `Image ${i + 1} of the answer` })),
  );
}

/** @param {string} text */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // events, metrics
  }
}
