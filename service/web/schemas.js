/**
 * Schemas of an OpenAPI document, in the words of a table.
 */

const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";

/** @typedef {any} Schema part of a JSON schema */

/**
 * Follow references.
 * @param {Schema} schema
 * @param {any} api the document
 * @returns {Schema}
 */
export function resolve(schema, api) {
  if (!schema?.$ref) return schema ?? {};
  /** @type {string[]} */
  const path = schema.$ref.split("/").slice(1);
  return path.reduce((at, name) => at[name], api);
}

/**
 * Name what a value may be.
 * @param {Schema} given
 * @param {any} api
 * @returns {string}
 */
export function kindOf(given, api) {
  const schema = resolve(given, api);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) {
    const kinds = choices.map((/** @type {Schema} */ each) => kindOf(each, api));
    return [...new Set(kinds)].filter((kind) => kind !== "null").join(" or ");
  }
  if (schema.enum) return schema.enum.join(", ");
  if (schema.const !== undefined) return String(schema.const);
  if (schema.type === "array") return `list of ${kindOf(schema.items, api)}`;
  if (schema.format === "binary") return "bytes";
  return schema.type ?? "any";
}

/**
 * Say within which bounds a value lies, and what it is when left out.
 * @param {Schema} given
 * @param {any} api
 */
export function boundsOf(given, api) {
  const schema = resolve(given, api);
  const at = schema.anyOf?.find((/** @type {Schema} */ each) => each.type !== "null") ?? schema;
  const fallback = schema.default ?? null;
  /** @type {[string, any][]} */
  const bounds = [
    ["≥ ", at.minimum],
    ["≤ ", at.maximum],
    ["> ", at.exclusiveMinimum],
    ["< ", at.exclusiveMaximum],
    ["default ", fallback === null || isEmpty(fallback) ? undefined : JSON.stringify(fallback)],
  ];
  return bounds
    .filter(([, value]) => value !== undefined)
    .map(([sign, value]) => sign + written(value))
    .join(", ");
}

/**
 * Write a bound; one that comes of how numbers are stored is read more easily as a power of two.
 * @param {number | string} value
 */
function written(value) {
  if (typeof value !== "number" || value < 2 ** 16) return String(value);
  for (const [offset, rest] of /** @type {[number, string][]} */ ([
    [0, ""],
    [1, " − 1"],
  ])) {
    const exponent = Math.log2(value + offset);
    if (Number.isInteger(exponent))
      return `2${[...String(exponent)].map((digit) => SUPERSCRIPT[Number(digit)]).join("")}${rest}`;
  }
  return String(value);
}

/** @param {any} value */
function isEmpty(value) {
  return typeof value === "object" && !Object.keys(value).length;
}

/**
 * List the fields of an object.
 * @param {Schema} given
 * @param {any} api
 * @returns {[string, Schema, boolean][]} name, schema, whether it must be there
 */
export function fieldsOf(given, api) {
  const schema = resolve(given, api);
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, field]) => [
    name,
    resolve(field, api),
    required.has(name),
  ]);
}
