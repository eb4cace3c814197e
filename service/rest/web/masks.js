//# allFunctionsCalledOnLoad
// Masks of classes by name or by example: over the image, as a list, and as files.

import { Code, dataUri, decodeFloats, sendJson } from "./api.js";
import { Classes } from "./classes.js";
import { $, Latest, wordsIn } from "./form.js";
import { drawOutlines, labelsOf, outlinesOf } from "./outlines.js";
import { offerShare } from "./share.js";
import { indexAt, paintScale } from "./stage.js";

const PATH = "v1/images:segment";
// The server's own level of background.
const LEVEL = 0.65;
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

/** A file in COCO's format of an answer with instances, for the image of that name. */
function cocoOf({ height, width, classes, instances }, name) {
  const annotations = instances.map(({ label, ...rest }, index) =>
    ({ id: index + 1, image_id: 1, category_id: label, iscrowd: 0, ...rest }));
  return {
    images: [{ id: 1, file_name: name, height, width }],
    categories: classes.map(({ label, name: one }) => ({ id: label, name: one })),
    annotations,
  };
}

export class Masks {
  #latest = new Latest();
  // {height, width, classes, background_share} of the answer that is shown.
  #mask = null;
  // Cosines of one class: {height, width, values}.
  #heat = null;
  // The image of what is shown.
  #file = null;
  // {name, file, region} of each example; its region is a point or a box in pixels of the file.
  #examples = [];
  #numShown = 0;
  // The level of background as set by hand: 0 is none; null is the server's own level.
  #level = null;

  constructor(app) {
    this.app = app;
    this.words = [];
    this.rows = new Classes($("#legend"));
    this.rows.addEventListener("remove", ({ detail }) => this.#remove(detail));
    this.rows.addEventListener("alone", () => (this.#showsHeat ? this.refresh() : this.#draw()));
    const input = $("#classes-input");
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === ",") {
        event.preventDefault();
        this.#add(input);
      } else if (event.key === "Backspace" && !input.value && this.words.length) {
        this.#remove(this.words.length - 1);
      }
    });
    input.addEventListener("change", () => this.#add(input));
    $("#level").addEventListener("input", ({ target }) => {
      this.#level = Number(target.value);
      this.refresh();
    });
    for (const radio of document.querySelectorAll("[name=by], [name=view]")) {
      radio.addEventListener("change", () => this.refresh());
    }
    for (const id of ["background-input", "quality", "resolution", "templates"]) {
      $(`#${id}`).addEventListener("change", () => this.refresh());
    }
  }

  /** What the link of this tab restores. */
  link() {
    const level = this.#level === null ? "" : String(this.#level);
    return { words: this.words.join(","), background: level, view: this.#showsHeat && "heat" };
  }

  restore({ words = "", background = "", view }) {
    this.use(wordsIn(words), background === "" ? null : Number(background) || 0);
    $(`[name=view][value=${view === "heat" ? "heat" : "mask"}]`).checked = true;
  }

  /** Find these words, at the next request, with a level of background or the server's own. */
  use(words, level = null) {
    this.words = words;
    this.#level = level;
    $("#level").value = level ?? LEVEL;
    $("[name=by][value=words]").checked = true;
  }

  /** Another tab draws from now on. */
  stop() {
    this.#latest.abort();
  }

  /** Ask for the mask of the image, the classes and the options as they are. */
  refresh() {
    if (this.#file !== this.app.file) this.#forget();
    this.#file = this.app.file;
    // First, since the form can change while the server computes.
    const answered = this.#isReady && this.#latest.run((signal) =>
      this.#showsHeat ? this.#loadHeat(signal) : this.#load(signal));
    this.#arrange();
    if (answered) return answered;
    this.#latest.abort();
    this.#forget();
    if (this.app.file) this.app.stage.prepare();
  }

  /** Take away what was shown. */
  #forget() {
    this.#mask = this.#heat = null;
    this.rows.tell(null);
    $("#rest").value = $("#reading").textContent = "";
    this.app.stage.clear();
  }

  /** Show a fast mask first, where a fine one is asked for. */
  async #load(signal) {
    const { quality } = this.#options();
    const request = await this.#request();
    for (const one of quality === "fine" ? ["fast", "fine"] : [quality]) {
      const answered = sendJson({ ...withOptions(request, { quality: one, format: "rle_counts" }), signal });
      // What does not need the answer is done while the server computes.
      this.app.stage.prepare();
      await this.#show((await answered).data[0], signal);
    }
  }

  async #show(mask, signal) {
    signal.throwIfAborted();
    this.#mask = { ...mask, labels: labelsOf(mask) };
    this.#heat = null;
    this.#mask.outlines = outlinesOf(this.#mask.labels, mask.height, mask.width);
    this.#draw();
    // The mask has a frame of its own, which would wait if the page's next one had the list.
    await secondFrame();
    signal.throwIfAborted();
    this.#tell(mask);
  }

  #tell({ classes, background_share: rest }) {
    this.rows.tell(classes);
    $("#rest").value = rest ? `${(100 * rest).toFixed(0)} %` : "none";
  }

  #draw() {
    const { stage } = this.app;
    if (!this.#mask) return;
    const { classes, outlines, background_share: rest } = this.#mask;
    const { alone } = this.rows;
    const shown = classes
      .filter((_, index) => alone === null || alone === index)
      .map(({ label, color }) => [label, color]);
    stage.draw((context, size) => drawOutlines(context, size, outlines, shown, alone === null && !rest));
  }

  /** Cosines of the class that is looked at, or of the first one. */
  async #loadHeat(signal) {
    const index = this.rows.alone ?? 0;
    const options = { encoding: "base64", include_scores: true, size: "model" };
    const request = withOptions(await this.#request(index), options);
    const { height, width, scores } = (await sendJson({ ...request, signal })).data[0];
    signal.throwIfAborted();
    this.#mask = null;
    this.#heat = { name: this.#names[index], height, width, values: decodeFloats(scores) };
    paintScale(this.app.stage, this.#heat);
  }

  /** Say what is shown at a point, and show its class alone. */
  read(point) {
    if (this.#heat) {
      const { name, height, width, values } = this.#heat;
      return `${name}, cosine ${values[indexAt(point, height, width)].toFixed(3)}`;
    }
    if (!this.#mask) return "";
    const { height, width, labels, classes } = this.#mask;
    const label = labels[indexAt({ x: point.y, y: point.x }, width, height)];
    this.rows.point(label ? label - 1 : null);
    return label ? classes[label - 1].name : "background";
  }

  /** The pointer has left the image. */
  leave() {
    if (this.#mask) this.rows.point(null);
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

  #add(input) {
    const added = wordsIn(input.value);
    input.value = "";
    if (!added.length) return;
    this.words = [...new Set([...this.words, ...added])];
    this.app.refresh();
  }

  #remove(index) {
    const without = (list) => list.filter((_, at) => at !== index);
    if (this.#usesExamples) this.#examples = without(this.#examples);
    else this.words = without(this.words);
    this.app.refresh();
    $(this.#usesExamples ? "[name=by]:checked" : "#classes-input").focus();
  }

  get #usesExamples() {
    return $("[name=by]:checked").value === "examples";
  }

  get #showsHeat() {
    return $("[name=view]:checked").value === "heat";
  }

  get #names() {
    return this.#usesExamples ? this.#examples.map(({ name }) => name) : this.words;
  }

  get #isReady() {
    return Boolean(this.app.file && this.#names.length);
  }

  /** Options of a request for all classes, or without background for the one at an index. */
  #options(only) {
    const others = wordsIn($("#background-input").value);
    const quality = $("#quality").value;
    return {
      classes: only === undefined ? this.words : [this.words[only]],
      background_classes: others.length && only === undefined ? others : undefined,
      ...(only === undefined ? this.#background() : { background: "none" }),
      ...(quality === "slide" ? { mode: "slide" } : { mode: "whole", quality }),
      resolution: Number($("#resolution").value) || undefined,
      templates: $("#templates").value,
      ...this.app.modelQuery,
    };
  }

  /** Options of the background: a further word or example does not change that it is found. */
  #background() {
    if (this.#level === null) return { background: "auto" };
    return this.#level ? { background: "auto", background_level: this.#level } : { background: "none" };
  }

  /** The image of the mask, then those of examples that are elsewhere. */
  #files(examples) {
    return [...new Set([this.app.file, ...examples.map(({ file }) => file)])];
  }

  async #exampleRequest(only) {
    const examples = only === undefined ? this.#examples : [this.#examples[only]];
    const files = this.#files(examples);
    const classes = examples.map(({ name, file, region }) =>
      ({ name, examples: [{ image: files.indexOf(file), ...region }] }));
    const images = await Promise.all(files.map(dataUri));
    const { templates, background_classes, ...options } = this.#options(only);
    return { path: PATH, json: { ...options, images, classes }, files };
  }

  #wordRequest(only) {
    return { path: PATH, query: this.#options(only), image: this.app.file };
  }

  async #request(only) {
    return this.#usesExamples ? this.#exampleRequest(only) : this.#wordRequest(only);
  }

  /** Show what belongs to the form as it is. */
  #arrange() {
    const usesExamples = this.#usesExamples;
    for (const id of ["classes-input", "background-field", "templates-field"]) $(`#${id}`).hidden = usesExamples;
    $("#examples-hint").hidden = !usesExamples;
    $("#level-field").hidden = this.#showsHeat;
    if (this.#level !== null) $("#level").value = this.#level;
    this.app.stage.selectsBoxes = usesExamples && this.app.current === "masks";
    this.app.fade(this.#showsHeat);
    this.rows.set(this.#names);
    this.#share(usesExamples);
  }

  #share(usesExamples) {
    // A PNG holds one image.
    const isElsewhere = usesExamples && this.#examples.some(({ file }) => file !== this.app.file);
    const request = (accept, options) => async () => ({ ...withOptions(await this.#request(), options), accept });
    const isReady = this.#isReady;
    const files = [
      { label: "Save mask", id: "save-png", suffix: "mask.png", request: isReady && !isElsewhere && request("image/png", {}) },
      { label: "Save COCO", id: "save-coco", suffix: "coco.json", request: isReady && request("application/json", { format: "rle", include_instances: true }),
        convert: ({ data: [found] }) => cocoOf(found, this.app.file.name) },
    ];
    const curl = isReady && !isElsewhere && (async () => (this.#showsHeat
      ? { ...withOptions(await this.#request(this.rows.alone ?? 0), { format: "heatmap" }), accept: "image/png", output: "heatmap.png" }
      : { ...(await this.#request()), accept: "image/png", output: "mask.png" }));
    const python = isReady && (() => this.#python());
    offerShare({ ...this.app.shared(), files, curl, python });
  }

  #python() {
    const call = { method: "segment", result: "answer.classes, answer.labels.shape" };
    const { templates, background_classes, ...options } = this.#options();
    if (!this.#usesExamples) return { ...call, options: this.#options() };
    const files = this.#files(this.#examples);
    const classes = this.#examples.map(({ name, file, region: { point, box } }) => {
      const region = point ? `point=(${point.join(", ")})` : `box=(${box.join(", ")})`;
      return `"${name}": [Example(image=${files.indexOf(file)}, ${region})]`;
    });
    return { ...call, options: { ...options, classes: new Code(`{${classes.join(", ")}}`) }, files };
  }
}
