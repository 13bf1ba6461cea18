/**
 * The settings as code to take away: short, complete, with the key in the environment and not in
 * the text.
 */

import { essentials } from "./settings.js";

/**
 * @typedef {import("./settings.js").Settings} Settings
 * @typedef {import("./api.js").ModelCard} ModelCard
 * @typedef {{url: string, hasKey: boolean, label: string, prompt: string}} Place where the service is, and how the class is called
 */

/**
 * @param {Settings} settings
 * @param {ModelCard} card
 * @param {Place} place
 */
export function curlCode(settings, card, { url, hasKey, label }) {
  const isOne = settings.num_images === 1;
  return [
    `curl -o ${stem(label)}.${isOne ? "png" : "json"} \\`,
    ...(hasKey ? ['  -H "Authorization: Bearer $BAR_API_KEY" \\'] : []),
    "  -H 'Content-Type: application/json' \\",
    ...(isOne ? ["  -H 'Accept: image/png' \\"] : []),
    `  -d ${quoted(`{\n${fields(essentials(settings, card), 4)}\n  }`)} \\`,
    `  ${quoted(`${url}/v1/generations`)}`,
  ].join("\n");
}

/**
 * @param {Settings} settings
 * @param {ModelCard} card
 * @param {Place} place
 */
export function pythonCode(settings, card, { url, hasKey, label }) {
  return [
    "import base64",
    ...(hasKey ? ["import os"] : []),
    "",
    "import httpx",
    "",
    "reply = httpx.post(",
    `    ${JSON.stringify(`${url}/v1/generations`)},`,
    ...(hasKey ? ['    headers={"Authorization": f"Bearer {os.environ[\'BAR_API_KEY\']}"},'] : []),
    `    json={\n${fields(essentials(settings, card), 8)},\n    },`,
    `    timeout=${card.limits.max_timeout_s},`,
    ")",
    "reply.raise_for_status()",
    ...saving('reply.json()["data"]', 'image["b64_json"]', label, `image["seed"]`),
  ].join("\n");
}

/**
 * @param {Settings} settings
 * @param {ModelCard} card
 * @param {Place} place
 */
export function openaiCode(settings, card, { url, hasKey, label, prompt }) {
  const { model, class_id, num_images, ...extra } = essentials(settings, card);
  return [
    "import base64",
    ...(hasKey ? ["import os"] : []),
    "",
    "from openai import OpenAI",
    "",
    "client = OpenAI(",
    `    base_url=${JSON.stringify(`${url}/v1`)},`,
    `    api_key=${hasKey ? 'os.environ["BAR_API_KEY"]' : '"none"'},`,
    ")",
    "answer = client.images.generate(",
    `    model=${JSON.stringify(model)},`,
    `    prompt=${JSON.stringify(prompt)},`,
    ...(num_images ? [`    n=${num_images},`] : []),
    `    extra_body={\n${fields(extra, 8)},\n    },`,
    ")",
    ...saving("enumerate(answer.data)", "image.b64_json", label, "i", "i, image"),
  ].join("\n");
}

/**
 * @param {string} images
 * @param {string} base64
 * @param {string} label
 * @param {string} part that tells files apart
 * @param {string} [target]
 */
function saving(images, base64, label, part, target = "image") {
  return [
    `for ${target} in ${images}:`,
    `    with open(f'${stem(label)}-{${part}}.png', "wb") as file:`,
    `        file.write(base64.b64decode(${base64}))`,
  ];
}

/**
 * Write numbers, texts and lists as the fields of a JSON object, which are those of a Python dict.
 * @param {object} values
 * @param {number} indent
 */
function fields(values, indent) {
  const lines = Object.entries(values).map(([name, value]) => {
    const text = Array.isArray(value) ? `[${value.join(", ")}]` : JSON.stringify(value);
    return `${" ".repeat(indent)}"${name}": ${text}`;
  });
  return lines.join(",\n");
}

/** @param {string} text for a shell */
function quoted(text) {
  return /^[\w:/.-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** @param {string} label name of a class, as part of a file's name */
function stem(label) {
  return (
    label
      .toLowerCase()
      .replace(/[^a-z0-9]+/g, "-")
      .replace(/^-|-$/g, "") || "image"
  );
}
