/**
 * Server-sent events out of a stream of bytes, as the HTML standard describes them.
 *
 * EventSource cannot send a body or a key, so the stream of a POST is read here.
 */

/** @typedef {{event: string, data: string, id: string}} ServerEvent */

/**
 * Yield the events of a stream; leaving the loop closes it.
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* readEvents(stream) {
  let event = "";
  let id = "";
  /** @type {string[]} */
  let data = [];
  for await (const line of readLines(stream)) {
    if (line === "") {
      if (data.length) yield { event: event || "message", data: data.join("\n"), id };
      event = "";
      data = [];
      continue;
    }
    const [name, value] = splitField(line);
    if (name === "event") event = value;
    else if (name === "data") data.push(value);
    else if (name === "id" && !value.includes("\0")) id = value;
  }
}

/**
 * Split "name: value"; one space after the colon belongs to it. A comment has the name "".
 * @param {string} line
 */
function splitField(line) {
  const colon = line.indexOf(":");
  if (colon < 0) return [line, ""];
  const start = line[colon + 1] === " " ? colon + 2 : colon + 1;
  return [line.slice(0, colon), line.slice(start)];
}

/**
 * Yield the lines of a stream, which end with \n, \r or \r\n; what stands after the last end is
 * no line.
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncGenerator<string>}
 */
async function* readLines(stream) {
  const decoder = new TextDecoder(); // drops a byte order mark, as the standard asks
  const reader = stream.getReader();
  let rest = "";
  let endsWithReturn = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      let text = decoder.decode(value, { stream: true });
      if (!text) continue;
      // The second half of a \r\n that was cut in two; the first has ended the line already.
      if (endsWithReturn && text.startsWith("\n")) text = text.slice(1);
      endsWithReturn = text.endsWith("\r");
      const lines = text.split(/\r\n|\n|\r/);
      lines[0] = rest + lines[0];
      rest = lines.pop() ?? "";
      yield* lines;
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have broken by itself
  }
}
