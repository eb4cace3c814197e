//# allFunctionsCalledOnLoad
// Masks of classes by name or by example: over the image, as a legend, and as files.

import { asCurl, asPython, dataUri, decodeFloats, send, sendJson } from "./api.js";
import { $, Chips, chip, copy, element, Latest, save, say } from "./form.js";
import { eachRun, indexAt } from "./stage.js";

const PATH = "v1/images:segment";
// Above this the scores, five bytes a pixel as base64, are not loaded.
const MAX_SCORED_PIXELS = 6e6;
// Cosine with an example; a single example would else be everywhere.
const EXAMPLE_THRESHOLD = 0.6;
// A drag over fewer pixels of the image is a click.
const MIN_BOX = 4;

/** Wait for the page's second frame that begins from now on; the next one may have begun before. */
async function secondFrame() {
  const frame = () => new Promise(requestAnimationFrame);
  const now = performance.now();
  while ((await frame()) < now);
  await frame();
}

/** The request with further options, in the part where it has them. */
const withOptions = (request, options) => {
  const part = request.json ? "json" : "query";
  return { ...request, [part]: { ...request[part], ...options } };
};

export class Masks {
  #latest = new Latest();
  #latestScores = new Latest();
  #mask = null;
  #single = null;
  // {name, file, region} of each example; its region is a point or a box in pixels of the file.
  #examples = [];
  #numShown = 0;

  constructor(app) {
    this.app = app;
    this.classes = new Chips($("#classes"));
    this.background = new Chips($("#background"));
    for (const chips of [this.classes, this.background]) {
      chips.addEventListener("change", () => this.refresh());
    }
    for (const radio of document.querySelectorAll("[name=by]")) {
      radio.addEventListener("change", () => this.refresh());
    }
    for (const id of ["threshold", "mode", "resolution", "templates"]) {
      $(`#${id}`).addEventListener("change", () => this.refresh());
    }
    $("#opacity").addEventListener("input", ({ target }) => (this.app.stage.opacity = Number(target.value)));
    $("#save-png").addEventListener("click", () => this.#save("image/png", {}, "mask.png"));
    $("#save-overlay").addEventListener("click", () =>
      this.#save("image/png", { format: "overlay" }, "overlay.png"));
    $("#save-coco").addEventListener("click", () =>
      this.#save("application/json", { format: "rle", include_instances: true }, "mask.json"));
    $("#copy-curl").addEventListener("click", async () =>
      copy(asCurl({ ...(await this.#request()), accept: "image/png" }, "mask.png")));
    $("#copy-python").addEventListener("click", () =>
      copy(asPython("segment", this.#options(), this.app.file, "answer.classes, answer.labels.shape")));
    this.#enable();
  }

  /** Ask for the mask of the image, the classes and the options as they are. */
  refresh() {
    // First, since the form can change while the server computes.
    const answered = this.#isReady && this.#latest.run((signal) => this.#load(signal));
    this.#enable();
    if (answered) return answered;
    this.#latest.abort();
    this.#mask = null;
    $("#legend").replaceChildren();
    $("#reading").textContent = "";
    this.app.stage.clear();
    if (this.app.file) this.app.stage.prepare();
  }

  async #load(signal) {
    const query = { format: "rle_counts", include_instances: true };
    const request = this.#usesExamples ? await this.#exampleRequest(query) : this.#wordRequest(query);
    const answered = sendJson({ ...request, signal });
    // What does not need the answer is done while the server computes.
    this.app.stage.prepare();
    this.app.stage.opacity = Number($("#opacity").value);
    const { height, width, classes, background_share, instances } = (await answered).data[0];
    this.#mask = { height, width, classes, hasBackground: background_share > 0, request };
    this.#single = null;
    this.#paint();
    // The mask has a frame of its own, which would wait if the page's next one had the legend.
    await secondFrame();
    if (!signal.aborted) this.#list(classes, background_share, instances);
  }

  /** Say what the mask has at a point. */
  read(point) {
    if (!this.#mask) return "";
    const { height, width, scores, classes } = this.#mask;
    const label = this.#labels()[indexAt({ x: point.y, y: point.x }, width, height)];
    const name = classes[label - 1]?.name ?? "background";
    if (scores) return `${name}, cosine ${scores[indexAt(point, height, width)].toFixed(3)}`;
    this.#loadScores(this.#mask);
    return name;
  }

  /** The label of every pixel by column, as run lengths are; made when a point is first read. */
  #labels() {
    const { height, width, classes } = this.#mask;
    if (!this.#mask.labels) {
      const labels = (this.#mask.labels = new Uint16Array(height * width));
      for (const { label, segmentation } of classes) {
        eachRun(segmentation.counts, (start, end) => labels.fill(label, start, end));
      }
    }
    return this.#mask.labels;
  }

  /** Load the score of every pixel, which is far larger than the run lengths of the mask. */
  #loadScores(mask) {
    if (mask.isLoading || mask.height * mask.width > MAX_SCORED_PIXELS) return;
    mask.isLoading = true;
    this.#latestScores.run(async (signal) => {
      const options = { encoding: "base64", include_instances: false, include_scores: true };
      const answer = await sendJson({ ...withOptions(mask.request, options), signal });
      mask.scores = decodeFloats(answer.data[0].scores);
      this.app.stage.readAgain();
    });
  }

  /** Add the patch at a point, or the box to a corner, as a class. */
  pick({ x, y, corner }, stage) {
    if (!this.#usesExamples || !stage.image.naturalWidth) return;
    const { naturalWidth: width, naturalHeight: height } = stage.image;
    const [left, right] = [x, corner?.x ?? x].map((one) => Math.floor(one * width)).sort((a, b) => a - b);
    const [top, bottom] = [y, corner?.y ?? y].map((one) => Math.floor(one * height)).sort((a, b) => a - b);
    const isBox = Math.max(right - left, bottom - top) >= MIN_BOX;
    const region = isBox ? { box: [left, top, right - left + 1, bottom - top + 1] } : { point: [left, top] };
    this.#numShown += 1;
    this.#examples.push({ name: `example ${this.#numShown}`, file: stage.file, region });
    this.refresh();
  }

  /** Let the image select examples while this tab is shown. */
  listen(isShown) {
    this.app.stage.selectsBoxes = isShown && this.#usesExamples;
  }

  get #usesExamples() {
    return $("[name=by]:checked").value === "examples";
  }

  get #isReady() {
    return Boolean(this.app.file && (this.#usesExamples ? this.#examples : this.classes.words).length);
  }

  #showExamples() {
    const chips = this.#examples.map((example) => chip(example.name, () => {
      this.#examples = this.#examples.filter((other) => other !== example);
      this.refresh();
      $("[name=by]:checked").focus();
    }));
    $("#shown").replaceChildren(...chips);
  }

  #options() {
    const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
    return {
      classes: this.classes.words,
      background_classes: this.background.words.length ? this.background.words : undefined,
      background_threshold: number("#threshold"),
      mode: $("#mode").value,
      resolution: number("#resolution"),
      templates: $("#templates").value,
      model: this.app.isDefaultModel ? undefined : this.app.model.id,
    };
  }

  /** A JSON body: the image of the mask comes first, then those of examples that are elsewhere. */
  async #exampleRequest(query) {
    const files = [...new Set([this.app.file, ...this.#examples.map(({ file }) => file)])];
    const classes = this.#examples.map(({ name, file, region }) =>
      ({ name, examples: [{ image: files.indexOf(file), ...region }] }));
    const { background_threshold = EXAMPLE_THRESHOLD, mode, resolution, model } = this.#options();
    const images = await Promise.all(files.map(dataUri));
    const json = { images, classes, background_threshold, mode: mode || undefined, resolution, model, ...query };
    return { path: PATH, json };
  }

  #wordRequest(query) {
    return { path: PATH, query: { ...this.#options(), ...query }, image: this.app.file };
  }

  async #request(query = {}) {
    return this.#usesExamples ? this.#exampleRequest(query) : this.#wordRequest(query);
  }

  #list(classes, backgroundShare, instances) {
    const rows = classes.map(({ label, name, color, area_share, score }) => {
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = color;
      const button = element("button", { type: "button", ariaPressed: "false" }, swatch, name);
      button.addEventListener("click", () => this.#isolate(label, button));
      const count = instances.filter((one) => one.label === label).length;
      const found = `, score ${score.toFixed(2)}, ${count} ${count === 1 ? "region" : "regions"}`;
      return element("li", {}, button, ` ${(100 * area_share).toFixed(1)} %${area_share ? found : ""}`);
    });
    if (backgroundShare) rows.push(element("li", {}, `background ${(100 * backgroundShare).toFixed(1)} %`));
    $("#legend").replaceChildren(...rows);
  }

  /** Show one class alone; again, all. */
  #isolate(label, button) {
    this.#single = this.#single === label ? null : label;
    for (const other of $("#legend").querySelectorAll("button")) {
      other.ariaPressed = String(other === button && this.#single === label);
    }
    this.#paint();
  }

  #paint() {
    const { height, width, classes, hasBackground } = this.#mask;
    const shown = classes.filter(({ label }) => this.#single === null || this.#single === label);
    const runs = shown.map(({ color, segmentation }) => [color, segmentation.counts]);
    if (!hasBackground && this.#single === null) {
      // The class of most runs is painted first, as one rectangle under the others.
      runs.sort(([, some], [, other]) => other.length - some.length);
      runs[0][1] = [0, width * height];
    }
    this.app.stage.paintRuns(width, height, runs);
  }

  #enable() {
    const usesExamples = this.#usesExamples;
    for (const id of ["names", "background", "templates"]) $(`#${id}-field`).hidden = usesExamples;
    $("#shown-field").hidden = !usesExamples;
    $("#threshold").placeholder = usesExamples ? EXAMPLE_THRESHOLD : "none";
    this.listen(this.app.current === "masks");
    this.#showExamples();
    for (const button of document.querySelectorAll("#masks .buttons button")) button.disabled = !this.#isReady;
    if (!usesExamples) return;
    // A PNG holds one image, and the copied lines send words.
    const isElsewhere = this.#examples.some(({ file }) => file !== this.app.file);
    for (const id of ["save-png", "save-overlay"]) $(`#${id}`).disabled ||= isElsewhere;
    for (const id of ["copy-curl", "copy-python"]) $(`#${id}`).disabled = true;
  }

  async #save(accept, query, name) {
    try {
      const response = await send({ ...(await this.#request(query)), accept });
      save(await response.blob(), `${this.app.file.name.replace(/\.\w+$/, "")}-${name}`);
    } catch (error) {
      say(error.message, true);
    }
  }
}
