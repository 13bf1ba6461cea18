/**
 * Calls of the HTTP interface. Addresses are relative to the page, so that it also works behind a
 * path prefix; every failure is an ApiError with a sentence for a person.
 */

import { keyHeaders } from "./key.js";
import { readEvents } from "./sse.js";

/**
 * @typedef {object} ModelCard a served model, as GET /v1/models describes it
 * @property {string} id
 * @property {string} revision
 * @property {number} image_size
 * @property {number} num_classes
 * @property {number} num_steps
 * @property {number} bits_per_token
 * @property {number} max_rounds
 * @property {{precision: string, is_exact: boolean, determinism: string} | null} numerics
 * @property {{guidance_scale: number, temperature: number, unmask_schedule: number[], order: "raster" | "random"}} defaults
 * @property {{max_images: number, max_timeout_s: number}} limits
 *
 * @typedef {{class_id: number, wordnet_id: string | null, name: string, names: string[]}} ClassEntry
 * @typedef {{index: number, class_id: number, class_name: string, seed: number, b64_json: string, sha256: string}} GeneratedImage
 *
 * @typedef {object} Generation
 * @property {string} id
 * @property {string} model
 * @property {string} model_revision
 * @property {string} size
 * @property {GeneratedImage[]} data
 * @property {Record<string, number>} timings
 * @property {string[]} warnings
 *
 * @typedef {{status: string, progress: number, eta_s: number | null, queue_position: number | null}} Progress
 * @typedef {{index: number, b64_json: string, progress: number}} PartialImage
 * @typedef {{event: "progress", data: Progress} | {event: "partial_image", data: PartialImage} | {event: "completed", data: Generation}} GenerationEvent
 *
 * @typedef {{message: string, type?: string, param?: string | null, code?: string | null}} ErrorBody
 */

const TOO_BUSY = [429, 503];

/** Why a call failed. `status` is 0 where no answer came. */
export class ApiError extends Error {
  /**
   * @param {ErrorBody} body
   * @param {{status?: number, retryAfterS?: number | null, requestId?: string | null}} [answer]
   */
  constructor(body, { status = 0, retryAfterS = null, requestId = null } = {}) {
    super(body.message);
    this.name = "ApiError";
    this.code = body.code ?? null;
    this.param = body.param ?? null;
    this.status = status;
    this.retryAfterS = retryAfterS;
    this.requestId = requestId;
  }

  /** Whether the same request may well succeed in a while. */
  get isTemporary() {
    return TOO_BUSY.includes(this.status);
  }

  /** Whether the next request, with other values, can hardly fare better. */
  get concernsAll() {
    return this.status < 500 && !this.isTemporary;
  }
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 */
async function call(path, options = {}) {
  const headers = { ...keyHeaders(), ...options.headers };
  let reply;
  try {
    reply = await fetch(new URL(path, document.baseURI), {
      cache: "no-store",
      ...options,
      headers,
    });
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ApiError({
      message: "No answer came: the server may be down, or the network between here and there.",
      code: "unreachable",
    });
  }
  if (!reply.ok) throw await refusal(reply);
  return reply;
}

/**
 * Read a refusal; what stands between here and the server may answer too, with a page of its own.
 * @param {Response} reply
 */
async function refusal(reply) {
  const seconds = Number(reply.headers.get("retry-after") ?? NaN);
  const answer = {
    status: reply.status,
    retryAfterS: Number.isFinite(seconds) ? seconds : null,
    requestId: reply.headers.get("x-request-id"),
  };
  try {
    const { error } = await reply.json();
    if (typeof error.message === "string") return new ApiError(error, answer);
  } catch {
    /* not the service's envelope */
  }
  const message = `The answer was ${reply.status} ${reply.statusText}`.trim();
  return new ApiError({ message: `${message}, without a reason.` }, answer);
}

/** @param {unknown} error */
export function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

/** @returns {Promise<ModelCard[]>} the served models, the default first */
export async function listModels() {
  return (await (await call("v1/models")).json()).data;
}

/**
 * @param {string} model
 * @param {string} query "" lists all of them
 * @param {{limit?: number, signal?: AbortSignal}} [options]
 * @returns {Promise<ClassEntry[]>} best match first
 */
export async function searchClasses(model, query, { limit = 50, signal } = {}) {
  const values = new URLSearchParams({ model, q: query.slice(0, 100), limit: String(limit) });
  return (await (await call(`v1/classes?${values}`, { signal })).json()).data;
}

/**
 * Ask for images and yield what is told of them; the last event is `completed`. Aborting closes
 * the connection, which cancels the job.
 * @param {object} request the body of POST /v1/generations
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<GenerationEvent>}
 */
export async function* generate(request, signal) {
  const reply = await call("v1/generations", {
    method: "POST",
    headers: { accept: "text/event-stream", "content-type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  const answer = { status: reply.status, requestId: reply.headers.get("x-request-id") };
  for await (const { event, data } of eventsOf(reply)) {
    const value = JSON.parse(data);
    if (event === "error") throw streamed(value.error, answer);
    yield /** @type {GenerationEvent} */ ({ event, data: value });
    if (event === "completed") return;
  }
  throw new ApiError({
    message: "The connection ended before the images were done.",
    code: "cut_off",
  });
}

/** @param {Response} reply */
async function* eventsOf(reply) {
  try {
    if (reply.body) yield* readEvents(reply.body);
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ApiError({
      message: "The connection broke before the images were done.",
      code: "cut_off",
    });
  }
}

/**
 * An error that came as an event has no status of its own; its type says whose fault it was.
 * @param {ErrorBody} body
 * @param {{requestId: string | null}} answer
 */
function streamed(body, { requestId }) {
  const status = body.type === "server_error" ? 500 : body.type === "rate_limit_error" ? 429 : 400;
  return new ApiError(body, { status, requestId });
}
