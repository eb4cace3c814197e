// Depth and normals of every pixel, for packages with dense heads.

import { sendNpy } from "./api.js";
import { $, Latest } from "./form.js";
import { indexAt, pixels, viridis } from "./stage.js";

export class Maps {
  #latest = new Latest();
  #map = null;

  constructor(app) {
    this.app = app;
    for (const radio of document.querySelectorAll("[name=map]")) {
      radio.addEventListener("change", () => this.refresh());
    }
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
    const { stage, file } = this.app;
    this.#map = null;
    $("#scale").hidden = true;
    stage.clear();
    stage.opacity = 1;
    if (!file) return;
    return this.#latest.run(async (signal) => {
      const task = $("[name=map]:checked").value;
      const query = { size: "model", ...(this.app.isDefaultModel ? {} : { model: this.app.model.id }) };
      const { shape, data } = await sendNpy({ path: `v1/images:${task}`, query, image: file, signal });
      const [height, width] = task === "depth" ? shape.slice(-2) : shape.slice(-3);
      this.#map = { task, height, width, data };
      if (task === "depth") this.#paintDepth();
      else this.#paintNormals();
    });
  }

  /** Say what the map has at a point. */
  read(point) {
    if (!this.#map) return "";
    const { task, height, width, data } = this.#map;
    const at = indexAt(point, height, width);
    if (task === "depth") return `${data[at].toFixed(2)} m`;
    return `normal ${[...data.subarray(3 * at, 3 * at + 3)].map((one) => one.toFixed(2)).join(", ")}`;
  }

  #paintDepth() {
    const { height, width, data } = this.#map;
    let low = Infinity;
    let high = -Infinity;
    for (const value of data) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    const range = high - low || 1;
    // Near is bright.
    const rgba = pixels(data.length, (i, out, at) => viridis(1 - (data[i] - low) / range, out, at));
    this.app.stage.paint(width, height, rgba, true);
    $("#scale-low").textContent = `${low.toFixed(2)} m`;
    $("#scale-high").textContent = `${high.toFixed(2)} m`;
    $("#scale").hidden = false;
  }

  #paintNormals() {
    const { height, width, data } = this.#map;
    const rgba = pixels(height * width, (i, out, at) => {
      for (let c = 0; c < 3; c++) out[at + c] = 127.5 * (data[3 * i + c] + 1);
      out[at + 3] = 255;
    });
    this.app.stage.paint(width, height, rgba, true);
  }
}
