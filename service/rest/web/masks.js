// Masks of named classes: over the image, as a legend, and as files.

import { asCurl, asPython, decodeArray, send, sendJson } from "./api.js";
import { $, Chips, copy, element, Latest, save, say } from "./form.js";
import { indexAt, pixels } from "./stage.js";

const PATH = "v1/images:segment";
// The score of every pixel comes with the mask: six bytes a pixel, a third more as base64.
const MAX_SCORED_PIXELS = 6e6;

const rgb = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));

export class Masks {
  #latest = new Latest();
  #mask = null;
  #single = null;

  constructor(app) {
    this.app = app;
    this.classes = new Chips($("#classes"));
    this.background = new Chips($("#background"));
    for (const chips of [this.classes, this.background]) {
      chips.addEventListener("change", () => this.refresh());
    }
    for (const id of ["threshold", "mode", "resolution", "templates"]) {
      $(`#${id}`).addEventListener("change", () => this.refresh());
    }
    $("#opacity").addEventListener("input", () => this.#fade());
    $("#save-png").addEventListener("click", () => this.#save("image/png", {}, "mask.png"));
    $("#save-overlay").addEventListener("click", () =>
      this.#save("image/png", { format: "overlay" }, "overlay.png"));
    $("#save-coco").addEventListener("click", () =>
      this.#save("application/json", { format: "rle", include_instances: true }, "mask.json"));
    $("#copy-curl").addEventListener("click", () =>
      copy(asCurl({ ...this.#request(), accept: "image/png" }, "mask.png")));
    $("#copy-python").addEventListener("click", () =>
      copy(asPython("segment", this.#options(), this.app.file, "answer.classes, answer.labels.shape")));
    this.#enable();
  }

  /** Ask for the mask of the image, the classes and the options as they are. */
  refresh() {
    this.#enable();
    if (!this.app.file || !this.classes.words.length) {
      this.#mask = null;
      $("#legend").replaceChildren();
      this.app.stage.clear();
      return;
    }
    return this.#latest.run(async (signal) => {
      const { naturalWidth, naturalHeight } = this.app.stage.image;
      const hasScores = naturalWidth * naturalHeight <= MAX_SCORED_PIXELS;
      const query = { encoding: "base64", include_instances: true, ...(hasScores && { include_scores: true }) };
      const answer = await sendJson({ ...this.#request(query), signal });
      this.#show(answer.data[0]);
    });
  }

  /** Say what the mask has at a point. */
  read(point) {
    if (!this.#mask) return "";
    const { height, width, labels, scores, classes } = this.#mask;
    const at = indexAt(point, height, width);
    const name = classes[labels[at] - 1]?.name ?? "background";
    return scores ? `${name}, cosine ${scores[at].toFixed(3)}` : name;
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

  #request(query = {}) {
    return { path: PATH, query: { ...this.#options(), ...query }, image: this.app.file };
  }

  #show({ height, width, classes, background_share, labels, scores, instances }) {
    const values = labels && decodeArray(labels).data;
    this.#mask = { height, width, classes, labels: values, scores: scores && decodeArray(scores).data };
    this.#single = null;
    this.#list(classes, background_share, instances);
    this.#paint();
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
    const { height, width, labels, classes } = this.#mask;
    const colors = [[0, 0, 0], ...classes.map(({ color }) => rgb(color))];
    const rgba = pixels(labels.length, (i, out, at) => {
      const label = labels[i];
      [out[at], out[at + 1], out[at + 2]] = colors[label];
      const isShown = label && (this.#single === null || this.#single === label);
      out[at + 3] = isShown ? 255 : 0;
    });
    this.app.stage.paint(width, height, rgba);
    this.#fade();
  }

  #fade() {
    this.app.stage.layer.style.opacity = $("#opacity").value;
  }

  #enable() {
    const isReady = Boolean(this.app.file && this.classes.words.length);
    for (const button of document.querySelectorAll("#masks .buttons button")) button.disabled = !isReady;
  }

  async #save(accept, query, name) {
    try {
      const response = await send({ ...this.#request(query), accept });
      save(await response.blob(), `${this.app.file.name.replace(/\.\w+$/, "")}-${name}`);
    } catch (error) {
      say(error.message, true);
    }
  }
}
