/**
 * The documentation page: every route of /openapi.json with its fields and a way to try it, after the
 * essentials, which need no script.
 */

import { byId, element } from "./dom.js";
import { KeyDialog } from "./key_dialog.js";
import { boundsOf, fieldsOf, kindOf } from "./schemas.js";
import { tryIt } from "./try_it.js";

/** Names of groups that are no words of their own. */
const TITLES = new Map([["openai", "OpenAI"]]);

/** @typedef {{method: string, path: string, operation: any, id: string}} Route */

async function start() {
  byId("tools").hidden = false;
  new KeyDialog(() => {});
  for (const node of document.querySelectorAll(".origin"))
    node.textContent = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const reply = await fetch(new URL("openapi.json", document.baseURI));
  const api = await reply.json();
  const groups = groupsOf(api);
  for (const [name, routes] of groups) {
    byId("contents").append(
      element("li", { className: "group" }, TITLES.get(name) ?? name),
      ...routes.map(({ method, path, id }) =>
        element("li", {}, element("a", { href: `#${id}` }, `${method.toUpperCase()} ${path}`)),
      ),
    );
    byId("details").append(...routes.map((route) => routeSection(route, api)));
  }
  document.querySelector("#routes .routes")?.remove();
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

/**
 * @param {any} api
 * @returns {Map<string, Route[]>} the routes by their first tag
 */
function groupsOf(api) {
  /** @type {Map<string, Route[]>} */
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(/** @type {any} */ (methods))) {
      const group = operation.tags?.[0] ?? "other";
      const id = `${method}-${path.replace(/\W+/g, "-").replace(/^-|-$/g, "")}`;
      groups.set(group, [...(groups.get(group) ?? []), { method, path, operation, id }]);
    }
  }
  return groups;
}

/**
 * @param {Route} route
 * @param {any} api
 */
function routeSection({ method, path, operation, id }, api) {
  const json = operation.requestBody?.content?.["application/json"]?.schema;
  const parts = [
    element(
      "h3",
      {},
      element("span", { className: "method" }, method.toUpperCase()),
      element("code", {}, path),
      operation.summary,
    ),
    ...(operation.description ?? "")
      .split("\n\n")
      .filter(Boolean)
      .map((/** @type {string} */ text) => element("p", {}, ...withCode(text))),
  ];
  if (operation.parameters) parts.push(...parameterTable(operation.parameters, api));
  if (json) parts.push(element("h4", {}, "Body"), fieldTable(fieldsOf(json, api), api));
  parts.push(
    element("h4", {}, "Answers"),
    answerTable(operation.responses),
    tryIt(method, path, operation, api),
  );
  return element("section", { id, className: "route" }, ...parts);
}

/**
 * @param {any[]} parameters
 * @param {any} api
 */
function parameterTable(parameters, api) {
  const rows = parameters.map(
    ({ name, in: place, schema, description, required }) =>
      /** @type {[string, any, boolean]} */ ([
        name,
        { ...schema, description: `${description ?? schema.description ?? ""} (${place})`.trim() },
        required,
      ]),
  );
  return [element("h4", {}, "Parameters"), fieldTable(rows, api)];
}

/**
 * @param {[string, any, boolean][]} fields
 * @param {any} api
 */
function fieldTable(fields, api) {
  const rows = fields.map(([name, schema, isRequired]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, element("code", {}, name)),
      element(
        "td",
        {},
        [kindOf(schema, api), boundsOf(schema, api), isRequired ? "required" : ""]
          .filter(Boolean)
          .join(", "),
      ),
      element("td", {}, ...withCode(schema.description ?? "")),
    ),
  );
  return element(
    "div",
    { className: "table" },
    element("table", { className: "fields" }, element("tbody", {}, ...rows)),
  );
}

/** @param {Record<string, any>} responses */
function answerTable(responses) {
  const rows = Object.entries(responses).map(([status, { description, content }]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, element("code", {}, status)),
      element("td", {}, Object.keys(content ?? {}).join(", ")),
      element("td", {}, ...withCode(description ?? "")),
    ),
  );
  return element(
    "div",
    { className: "table" },
    element("table", { className: "fields" }, element("tbody", {}, ...rows)),
  );
}

/**
 * Set what stands between backticks as code.
 * @param {string} text
 */
function withCode(text) {
  return text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part));
}

start().catch((error) => {
  byId("details").append(
    element("p", { className: "problem" }, `The routes could not be read: ${error.message}`),
  );
});
