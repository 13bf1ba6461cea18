/**
 * The images of one job: first their tokens, then previews, then what was asked for.
 */

import { element, icon } from "./dom.js";
import { tokenRaster } from "./raster.js";
import { count, percent } from "./wording.js";

/**
 * @typedef {import("./api.js").ModelCard} ModelCard
 * @typedef {import("./settings.js").Settings} Settings
 * @typedef {{figure: HTMLElement, picture: HTMLElement, caption: HTMLElement, draw: (share: number) => void}} Tile
 */

/** Images up to this size are shown pixel by pixel; larger ones are smoothed. */
const MAX_PIXELATED = 128;

export class Tiles {
  /**
   * @param {HTMLElement} container
   * @param {(settings: Settings) => void} onTake called with the settings of one image alone
   */
  constructor(container, onTake) {
    this.container = container;
    this.onTake = onTake;
    /** @type {Tile[]} */
    this.tiles = [];
    /** @type {string[]} */
    this.urls = [];
    this.label = "";
    /** @type {Settings | null} */
    this.settings = null;
  }

  /**
   * Show a place for each image.
   * @param {Settings} settings
   * @param {ModelCard} card
   * @param {string} label name of the class
   */
  begin(settings, card, label) {
    for (const url of this.urls) URL.revokeObjectURL(url);
    this.urls = [];
    this.settings = settings;
    this.label = label;
    this.tiles = Array.from({ length: settings.num_images }, () => emptyTile(card, settings.order));
    this.container.dataset.count = String(settings.num_images);
    this.container.classList.toggle("pixelated", card.image_size <= MAX_PIXELATED);
    this.container.replaceChildren(...this.tiles.map((tile) => tile.figure));
  }

  /**
   * Show what there will be, before anything was asked for.
   * @param {Settings} settings
   * @param {ModelCard} card
   */
  invite(settings, card) {
    this.begin({ ...settings, num_images: 1 }, card, "");
    this.settings = null; // the next model has another grid
    this.tiles[0].caption.textContent = `${count(card.num_steps, "token")}, one after another: press Generate.`;
  }

  /** @param {number} share of the whole job: of several images, none is known to be as far */
  progress(share) {
    if (this.tiles.length === 1) this.tiles[0].draw(share);
  }

  /** @param {import("./api.js").PartialImage} partial */
  preview({ index, b64_json, progress }) {
    const alt = `${this.label}, ${percent(progress)} drawn`;
    this.tiles[index].picture.replaceChildren(
      element("img", { alt, src: `data:image/png;base64,${b64_json}` }),
    );
    this.tiles[index].caption.textContent = percent(progress);
  }

  /**
   * @param {import("./api.js").Generation} generation
   * @returns {{image: HTMLImageElement, seed: number}[]}
   */
  complete(generation) {
    return generation.data.map(({ index, b64_json, seed }) => {
      const url = URL.createObjectURL(pngBlob(b64_json));
      this.urls.push(url);
      const image = element("img", { alt: `${this.label}, seed ${seed}`, src: url });
      this.tiles[index].picture.replaceChildren(image);
      this.tiles[index].caption.replaceChildren(...this.captionOf(seed, url));
      return { image, seed };
    });
  }

  /**
   * @param {number} seed
   * @param {string} url
   */
  captionOf(seed, url) {
    const settings = /** @type {Settings} */ (this.settings);
    const take = () => this.onTake({ ...settings, seed, num_images: 1 });
    const name = fileName(settings, seed);
    return [
      element(
        "button",
        { type: "button", className: "seed", title: "Keep this seed", onclick: take },
        element("span", { className: "unseen" }, "Keep seed "),
        String(seed),
      ),
      element(
        "a",
        {
          className: "button quiet square",
          href: url,
          download: name,
          title: `Download ${name}`,
          "aria-label": `Download seed ${seed}`,
        },
        icon("download"),
      ),
    ];
  }

  /** Say in each place that stayed empty that nothing more comes. */
  stop() {
    for (const tile of this.tiles) tile.figure.classList.add("stopped");
  }

  /**
   * Show the small picture of an image that was drawn before.
   * @param {Settings} settings
   * @param {ModelCard} card
   * @param {string} label name of the class
   * @param {string} thumbnail
   */
  remember(settings, card, label, thumbnail) {
    this.begin({ ...settings, num_images: 1 }, card, label);
    const alt = `${label}, seed ${settings.seed}, small picture`;
    this.tiles[0].picture.replaceChildren(element("img", { alt, src: thumbnail }));
    this.tiles[0].caption.textContent = String(settings.seed);
  }
}

/**
 * @param {ModelCard} card
 * @param {"raster" | "random"} order
 * @returns {Tile}
 */
function emptyTile(card, order) {
  const { node, draw } = tokenRaster(card.num_steps, order);
  const picture = element("div", { className: "picture" }, node);
  const caption = element("figcaption");
  return {
    figure: element("figure", { className: "tile" }, picture, caption),
    picture,
    caption,
    draw,
  };
}

/** @param {string} base64 */
export function pngBlob(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

/**
 * @param {Settings} settings
 * @param {number} seed
 */
export function fileName({ model, class_id }, seed) {
  return `${model.replace(/[^\w.-]+/g, "-")}-${class_id}-${seed}.png`;
}
