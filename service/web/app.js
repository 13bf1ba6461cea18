/**
 * The playground: its parts, connected. A run reads the settings, asks the server, and shows what it
 * tells; there is one run at a time, of single images or of a sweep, and it can be cancelled.
 */

import { ApiError, generate, isAbort, listModels } from "./api.js";
import { ClassChooser } from "./classes.js";
import { CodePanel } from "./code.js";
import { byId, element } from "./dom.js";
import { showAnswer, showModel } from "./facts.js";
import { SettingsForm } from "./form.js";
import { History } from "./history.js";
import { KeyDialog } from "./key_dialog.js";
import { key } from "./key.js";
import { defaultsOf, drawSeed, fromFragment, toFragment } from "./settings.js";
import { drawSheet } from "./sheet.js";
import { RUN_KEYS, Shortcuts } from "./shortcuts.js";
import { sentence, StatusLine } from "./status.js";
import { Sweep } from "./sweep.js";
import { connectTabs } from "./tabs.js";
import { Tiles } from "./tiles.js";
import { count, duration } from "./wording.js";

/**
 * @typedef {import("./api.js").ModelCard} ModelCard
 * @typedef {import("./settings.js").Settings} Settings
 */

const PREVIEWS = 3; // of each image, while it is drawn
const READY_POLL_MS = 2000;
const ONE_COLUMN = matchMedia("(max-width: 55.99rem)");
const CALM = matchMedia("(prefers-reduced-motion: reduce)");

class Playground {
  constructor() {
    /** @type {ModelCard[]} */
    this.cards = [];
    /** @type {AbortController | null} of the run under way */
    this.running = null;
    this.isSeedUsed = false; // a seed that was drawn or typed serves once before the next is drawn
    this.status = new StatusLine();
    this.code = new CodePanel();
    this.form = new SettingsForm(byId("settings"), () => this.onSettings());
    this.classes = new ClassChooser(
      (id) => this.form.setClass(id),
      (error) => this.report(error),
    );
    this.tiles = new Tiles(byId("tiles"), (settings) =>
      this.take(settings, "This image's settings are set, its seed is kept."),
    );
    this.sweep = new Sweep((settings) =>
      this.take(settings, "This image's settings are set, its seed is kept."),
    );
    this.history = new History((entry) => this.recall(entry));
    this.keyDialog = new KeyDialog(() => this.load());
    this.modes = connectTabs(byId("modes"), () => this.onMode());
    this.connect();
  }

  connect() {
    byId("settings").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.run();
    });
    byId("cancel").addEventListener("click", () => this.cancel());
    byId("restore-all").addEventListener("click", () => this.form.restoreAll());
    byId("seed-random").addEventListener("click", () => (this.isSeedUsed = false));
    byId("model").addEventListener("change", () => this.onModel());
    byId("trouble-retry").addEventListener("click", () => this.load());
    byId("sweep-download").addEventListener("click", () => this.downloadSheet());
    byId("run-keys").textContent = RUN_KEYS.join(" ");
    byId("more").open = !ONE_COLUMN.matches;
    window.addEventListener("hashchange", () => this.followLink());
    this.shortcuts = new Shortcuts(
      [
        { keys: RUN_KEYS, does: "Generate, or run the sweep" },
        { keys: ["Esc"], does: "Cancel what runs" },
        { keys: ["/"], does: "Search for a class", run: () => byId("class_id").focus() },
        { keys: ["S"], does: "New seed", run: () => byId("seed-random").click() },
        {
          keys: ["K"],
          does: "Keep the seed, or let it change",
          run: () => byId("seed-keep").click(),
        },
        { keys: ["I"], does: "Images", run: () => this.modes.select("tab-images") },
        { keys: ["W"], does: "Sweep", run: () => this.modes.select("tab-sweep") },
        { keys: ["?"], does: "This list", run: () => this.shortcuts?.open() },
      ],
      { onRun: () => this.run(), onCancel: () => this.cancel() },
    );
  }

  get isSweep() {
    return this.modes.selected() === "tab-sweep";
  }

  get card() {
    return this.form.card;
  }

  /** Ask what is served, and begin with it: with what a link says, or with the first model. */
  async load() {
    byId("trouble").hidden = true;
    try {
      this.cards = await listModels();
      const linked = this.card ? null : fromFragment(location.hash, this.cards);
      const settings = linked ?? this.sameOrDefault();
      byId("model").replaceChildren(
        ...this.cards.map(({ id }) => element("option", { value: id }, id)),
      );
      byId("model").disabled = this.cards.length < 2;
      await this.write(settings);
      if (linked) this.form.keepSeed(true);
      byId("run").disabled = false;
      this.watchReadiness();
    } catch (error) {
      this.showTrouble(/** @type {Error} */ (error));
    }
  }

  /** @returns {Settings} those of the form if it has any, for a key may change under way */
  sameOrDefault() {
    const { card } = this;
    if (card && this.cards.some(({ id }) => id === card.id)) return this.form.read();
    const first = this.cards[0];
    return defaultsOf(first, Math.min(7, first.num_classes - 1), drawSeed());
  }

  /**
   * Say at the top of the page why nothing can be done yet.
   * @param {Error} error
   */
  showTrouble(error) {
    const needsKey = error instanceof ApiError && error.status === 401;
    const box = byId("trouble");
    box.querySelector("p").textContent = needsKey
      ? "This server asks for an API key."
      : sentence(error.message);
    box.hidden = false;
    if (needsKey) this.keyDialog.open(key() ? sentence(error.message) : "");
  }

  /** Look again now and then while the model is loading. */
  async watchReadiness() {
    while (this.card && !this.card.numerics) {
      await new Promise((resolve) => setTimeout(resolve, READY_POLL_MS));
      const cards = await listModels().catch(() => this.cards);
      const card = cards.find(({ id }) => id === this.card?.id);
      if (!card) continue;
      this.cards = cards;
      this.form.card = card;
      showModel(card);
    }
  }

  /**
   * Put settings into the form, those of another model too.
   * @param {Settings} settings
   */
  async write(settings) {
    const card = this.cards.find(({ id }) => id === settings.model);
    if (!card) throw new ApiError({ message: `The model ${settings.model} is not served here.` });
    byId("model").value = card.id;
    await this.classes.useModel(card);
    this.form.setCard(card);
    showModel(card);
    this.classes.show(settings.class_id);
    this.form.write(settings);
    if (!this.tiles.settings) this.tiles.invite(settings, card);
  }

  async onModel() {
    const card = this.cards.find(({ id }) => id === byId("model").value);
    if (!card) return;
    const { class_id, seed } = this.form.read();
    const settings = defaultsOf(
      card,
      class_id < card.num_classes ? class_id : 0,
      Number.isNaN(seed) ? drawSeed() : seed,
    );
    await this.write(settings).catch((error) => this.report(error));
    this.watchReadiness();
  }

  async followLink() {
    const linked = this.cards.length ? fromFragment(location.hash, this.cards) : null;
    if (linked) await this.take(linked, "The settings of the link are set.");
  }

  /**
   * @param {Settings} settings
   * @param {string} said
   */
  async take(settings, said) {
    try {
      await this.write(settings);
      this.form.keepSeed(true);
      if (!this.running) this.status.end(said);
    } catch (error) {
      this.report(error);
    }
  }

  /** @param {import("./history.js").Entry} entry */
  async recall({ settings, label, thumbnail }) {
    await this.take(settings, "Settings restored. Generate draws the same image again.");
    if (this.running || this.card?.id !== settings.model) return;
    this.modes.select("tab-images");
    this.tiles.remember(settings, this.card, label, thumbnail);
  }

  onSettings() {
    const settings = this.form.read();
    if (!this.card || this.form.problems().size) return;
    this.sweep.suggest(settings);
    const url = new URL(".", document.baseURI).href.replace(/\/$/, "");
    const { label, prompt } = this.classes.describe(settings.class_id);
    this.code.show(settings, this.card, { url, hasKey: Boolean(key()), label, prompt });
  }

  onMode() {
    byId("panel-images").hidden = this.isSweep;
    byId("panel-sweep").hidden = !this.isSweep;
    byId("run").querySelector("span").textContent = this.isSweep ? "Run sweep" : "Generate";
  }

  cancel() {
    this.running?.abort();
  }

  /** Do what the button says, unless something is under way or a field is wrong. */
  async run() {
    const { card } = this;
    if (this.running || !card) return;
    if (!this.isSweep && !this.form.isSeedKept && this.isSeedUsed) this.form.setSeed(drawSeed());
    const problems = this.form.problems();
    if (problems.size) {
      this.form.showProblems(problems);
      return this.form.focusProblem();
    }
    if (this.isSweep && !this.sweep.read()) return this.sweep.focusProblem();
    const settings = this.form.read();
    history.replaceState(null, "", toFragment(settings, card));
    await this.during((signal) =>
      this.isSweep
        ? this.drawSweep(settings, card, signal)
        : this.drawImages(settings, card, signal),
    );
  }

  /** @param {(signal: AbortSignal) => Promise<void>} work */
  async during(work) {
    this.running = new AbortController();
    this.showBusy(true);
    try {
      await work(this.running.signal);
    } catch (error) {
      this.tiles.stop();
      this.report(error);
    } finally {
      this.running = null;
      this.showBusy(false);
    }
  }

  /** @param {boolean} isBusy */
  showBusy(isBusy) {
    const [shown, hidden] = isBusy ? [byId("cancel"), byId("run")] : [byId("run"), byId("cancel")];
    const hadFocus = document.activeElement === hidden;
    shown.hidden = false;
    hidden.hidden = true;
    if (hadFocus) shown.focus();
    byId("stage").setAttribute("aria-busy", String(isBusy));
    if (isBusy && ONE_COLUMN.matches)
      byId("stage").scrollIntoView({ behavior: CALM.matches ? "auto" : "smooth" });
  }

  /**
   * @param {Settings} settings
   * @param {ModelCard} card
   * @param {AbortSignal} signal
   */
  async drawImages(settings, card, signal) {
    const { label } = this.classes.describe(settings.class_id);
    const started = performance.now();
    this.tiles.begin(settings, card, label);
    this.status.begin("Asking …");
    this.isSeedUsed = true;
    for await (const { event, data } of generate(
      { ...settings, partial_images: PREVIEWS },
      signal,
    )) {
      if (event === "partial_image") this.tiles.preview(data);
      else if (event === "completed") {
        const images = this.tiles.complete(data);
        const took = duration((performance.now() - started) / 1000);
        this.status.end(
          `${images.length === 1 ? "An image" : `${images.length} images`} of ${label} in ${took}`,
        );
        showAnswer(data);
        await this.history.add(images, settings, label);
      } else {
        this.tiles.progress(data.progress);
        this.status.progress(data);
      }
    }
  }

  /**
   * @param {Settings} settings
   * @param {ModelCard} card
   * @param {AbortSignal} signal
   */
  async drawSweep(settings, card, signal) {
    const { label } = this.classes.describe(settings.class_id);
    const started = performance.now();
    this.status.begin("Asking …");
    const { numDrawn, numFailed } = await this.sweep.run(settings, card, label, signal, (told) =>
      this.status.progress(told),
    );
    const took = duration((performance.now() - started) / 1000);
    this.status.end(
      `${count(numDrawn, "image")} of ${label} in ${took}${numFailed ? `; ${numFailed} failed` : ""}`,
    );
  }

  async downloadSheet() {
    if (!this.sweep.grid) return;
    const url = URL.createObjectURL(await drawSheet(this.sweep.grid));
    element("a", { href: url, download: "sweep.png" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  /**
   * Say why something did not work, where it is to be mended.
   * @param {unknown} error
   */
  report(error) {
    if (isAbort(error)) return this.status.end("Cancelled.");
    if (!(error instanceof ApiError)) {
      this.status.fail(/** @type {Error} */ (error), () => this.run());
      throw error; // a fault of this page: the console shall have it
    }
    if (error.status === 401) this.showTrouble(error);
    this.status.fail(error, () => this.run());
    if (error.param) this.form.refuse(error.param, sentence(error.message));
  }
}

new Playground().load();
