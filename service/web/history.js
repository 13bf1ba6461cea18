/**
 * What was drawn in this browser: small pictures with the settings that bring each back.
 */

import { byId, element } from "./dom.js";

/** @typedef {import("./settings.js").Settings} Settings */
/** @typedef {{settings: Settings, label: string, thumbnail: string}} Entry */

const STORE = "bar-serve.history";
const MAX_ENTRIES = 96;
const THUMBNAIL = 96; // pixels

export class History {
  /** @param {(entry: Entry) => void} onRestore */
  constructor(onRestore) {
    this.onRestore = onRestore;
    this.list = byId("history");
    this.clearButton = byId("history-clear");
    this.clearButton.addEventListener("click", () => this.onClear());
    this.clearButton.addEventListener("blur", () => this.askAgain(false));
    window.addEventListener("storage", (event) => event.key === STORE && this.refresh());
    this.refresh();
  }

  /**
   * @param {{image: HTMLImageElement, seed: number}[]} images
   * @param {Settings} settings that they have in common
   * @param {string} label name of their class
   */
  async add(images, settings, label) {
    const made = await Promise.all(
      images.map(async ({ image, seed }) => ({
        settings: { ...settings, num_images: 1, seed },
        label,
        thumbnail: await thumbnailOf(image),
      })),
    );
    save([...made, ...load()]);
    this.refresh();
  }

  refresh() {
    const entries = load();
    this.list.replaceChildren(...entries.map((entry) => element("li", {}, this.buttonOf(entry))));
    this.clearButton.hidden = !entries.length;
    byId("history-empty").hidden = entries.length > 0;
  }

  /** @param {Entry} entry */
  buttonOf(entry) {
    const text = describe(entry);
    const image = element("img", { alt: "", src: entry.thumbnail, loading: "lazy" });
    return element(
      "button",
      { type: "button", title: text, "aria-label": text, onclick: () => this.onRestore(entry) },
      image,
    );
  }

  onClear() {
    if (!this.clearButton.classList.contains("sure")) return this.askAgain(true);
    this.askAgain(false);
    save([]);
    this.refresh();
    byId("run").focus(); // this button has gone
  }

  /** @param {boolean} isAsking whether the next press clears */
  askAgain(isAsking) {
    this.clearButton.classList.toggle("sure", isAsking);
    this.clearButton.textContent = isAsking ? "Really clear?" : "Clear";
  }
}

/** @param {Entry} entry */
function describe({ settings, label }) {
  const { seed, guidance_scale, temperature, order, unmask_schedule, model } = settings;
  return `${label}, seed ${seed}, guidance ${guidance_scale}, temperature ${temperature}, ${order} order, rounds ${unmask_schedule.join(" ")}, ${model}`;
}

/**
 * Read the history; what another version or somebody's hand left there is passed over.
 * @returns {Entry[]}
 */
function load() {
  try {
    const stored = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    return Array.isArray(stored) ? stored.filter(isEntry) : [];
  } catch {
    return [];
  }
}

/** @param {any} entry */
function isEntry(entry) {
  const { settings, label, thumbnail } = entry ?? {};
  const numbers = ["class_id", "num_images", "seed", "guidance_scale", "temperature"];
  return (
    typeof label === "string" &&
    typeof thumbnail === "string" &&
    thumbnail.startsWith("data:image/") &&
    typeof settings?.model === "string" &&
    Array.isArray(settings.unmask_schedule) &&
    numbers.every((field) => Number.isFinite(settings[field]))
  );
}

/**
 * Keep the newest entries: as many as there is room for.
 * @param {Entry[]} entries
 */
function save(entries) {
  for (let size = Math.min(entries.length, MAX_ENTRIES); ; size = Math.floor(size / 2)) {
    try {
      localStorage.setItem(STORE, JSON.stringify(entries.slice(0, size)));
      return;
    } catch {
      if (!size) return; // storage is blocked: there is no history
    }
  }
}

/** @param {HTMLImageElement} image */
async function thumbnailOf(image) {
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = Math.min(THUMBNAIL, image.naturalWidth);
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/webp", 0.85);
}
