// Depth and normals of every pixel, for packages with dense heads.

import { sendNpy } from "./api.js";
import { $, Latest } from "./form.js";
import { offerShare } from "./share.js";
import { indexAt, paintScale, pixels, rangeOf } from "./stage.js";

export class Maps {
  #latest = new Latest();
  #map = null;

  constructor(app) {
    this.app = app;
    for (const radio of document.querySelectorAll("[name=map], [name=place]")) {
      radio.addEventListener("change", () => this.refresh());
    }
  }

  /** What the link of this tab restores. */
  link() {
    return { map: this.#task === "normals" && "normals", place: this.#isBeside ? "" : "over" };
  }

  restore({ map = "depth", place = "beside" }) {
    $(`[name=map][value=${map === "normals" ? "normals" : "depth"}]`).checked = true;
    $(`[name=place][value=${place === "over" ? "over" : "beside"}]`).checked = true;
  }

  get #task() {
    return $("[name=map]:checked").value;
  }

  get #isBeside() {
    return $("[name=place]:checked").value === "beside";
  }

  /** Show the tasks that the model has. */
  offer(outputs) {
    for (const radio of document.querySelectorAll("[name=map]")) {
      radio.disabled = !outputs.includes(radio.value);
    }
    $("#tab-maps").hidden = !outputs.includes("depth") && !outputs.includes("normals");
    const first = $("[name=map]:enabled");
    if (first && $("[name=map]:checked").disabled) first.checked = true;
  }

  refresh() {
    const { stage, second, file } = this.app;
    this.#map = null;
    $("#scale").hidden = true;
    stage.clear();
    this.app.fade(!this.#isBeside);
    this.app.split(file && this.#isBeside);
    this.#share();
    if (!file) return;
    return this.#latest.run(async (signal) => {
      const answered = sendNpy({ ...this.#request("application/x-npy", { size: "model" }), signal });
      if (this.#isBeside) await second.show(file);
      const { shape, data } = await answered;
      signal.throwIfAborted();
      const task = this.#task;
      const [height, width] = task === "depth" ? shape.slice(-2) : shape.slice(-3);
      this.#map = { task, height, width, data };
      const shown = this.#isBeside ? second : stage;
      if (task === "depth") this.#paintDepth(shown);
      else this.#paintNormals(shown);
    });
  }

  #request(accept, options) {
    const query = { ...options, ...this.app.modelQuery };
    return { path: `v1/images:${this.#task}`, query, image: this.app.file, accept };
  }

  #share() {
    const task = this.#task;
    const { stage, second } = this.app;
    const files = [{ label: "Save npy", id: "save-npy", suffix: `${task}.npy`, request: () => this.#request("application/x-npy") }];
    const options = task === "depth" ? { format: "colors" } : {};
    const curl = () => ({ ...this.#request("image/png", options), output: `${task}.png` });
    const python = () => ({ method: task, options: this.app.modelQuery, result: "answer.shape" });
    offerShare({ ...this.app.shared(), stage: this.#isBeside ? second : stage, files, curl, python });
  }

  /** Another tab draws from now on. */
  stop() {
    this.#latest.abort();
  }

  /** Say what the map has at a point. */
  read(point) {
    if (!this.#map) return "";
    const { task, height, width, data } = this.#map;
    const at = indexAt(point, height, width);
    if (task === "depth") return `${data[at].toFixed(2)} m`;
    return `normal ${[...data.subarray(3 * at, 3 * at + 3)].map((one) => one.toFixed(2)).join(", ")}`;
  }

  #paintDepth(stage) {
    const { height, width, data } = this.#map;
    const [low, high] = rangeOf(data);
    paintScale(stage, { height, width, values: data.map((one) => -one) }, [-high, -low]); // near is bright
    $("#scale-low").textContent = `${low.toFixed(2)} m`;
    $("#scale-high").textContent = `${high.toFixed(2)} m`;
    $("#scale").hidden = false;
  }

  #paintNormals(stage) {
    const { height, width, data } = this.#map;
    stage.paint(width, height, pixels(height * width, (i, out, at) => {
      for (let c = 0; c < 3; c++) out[at + c] = 127.5 * (data[3 * i + c] + 1);
      out[at + 3] = 255;
    }));
  }
}
