// Patch embeddings: similarity to a patch or to a sentence, principal components, groups.

import { send, sendJson, sendNpy } from "./api.js";
import { $, Latest } from "./form.js";
import { offerShare } from "./share.js";
import { indexAt, paintScale, rangeOf } from "./stage.js";

export class Features {
  #latest = new Latest();
  // The second image, if one is compared.
  #second = null;
  // What is painted: {query, maps}, with one map for each image: {height, width, values}.
  #shown = null;
  // Patch embeddings of images by what was asked for, so that a click needs no request.
  #patches = new Map();

  constructor(app) {
    this.app = app;
    this.point = null;
    for (const radio of document.querySelectorAll("[name=kind]")) {
      radio.addEventListener("change", () => this.refresh());
    }
    for (const id of ["sentence", "group-count", "embeddings"]) {
      $(`#${id}`).addEventListener("change", () => this.refresh());
    }
    $("#second-file").addEventListener("change", async ({ target }) => {
      this.#second = target.files[0] ?? this.#second;
      this.refresh();
    });
  }

  /** Forget what belongs to another image or model. */
  forget() {
    this.#patches.clear();
    this.point = null;
  }

  refresh() {
    const kind = $("[name=kind]:checked").value;
    $("#sentence-field").hidden = kind !== "sentence";
    $("#groups-field").hidden = kind !== "groups";
    this.#shown = null;
    const { second } = this.app;
    if (this.#second && second.file !== this.#second) second.show(this.#second);
    this.app.split(Boolean(this.#second));
    const stages = this.#stages();
    for (const stage of stages) stage.clear();
    this.app.fade(true);
    this.#share(kind);
    if (!stages.length) return;
    return this.#latest.run(async (signal) => {
      if (kind === "similarity") await this.#compareWithPatch(stages, signal);
      else if (kind === "sentence") await this.#compareWithSentence(stages, signal);
      else await this.#paintView(stages, kind, signal);
    });
  }

  /** Compare all patches with the one at a point. */
  pick(point, stage) {
    if ($("[name=kind]:checked").value !== "similarity") return;
    this.point = { ...point, stage };
    return this.refresh();
  }

  /** Say what the map has at a point. */
  read(point, stage) {
    const map = this.#shown?.get(stage);
    return map ? `cosine ${map.values[indexAt(point, map.height, map.width)].toFixed(3)}` : "";
  }

  #stages() {
    const { stage, second } = this.app;
    return [stage, this.#second && second].filter((one) => one?.file);
  }

  #modelQuery() {
    return this.app.isDefaultModel ? {} : { model: this.app.model.id };
  }

  async #patchesOf(stage, signal) {
    const outputs = $("#embeddings").value;
    const known = this.#patches.get(stage.file)?.[outputs];
    if (known) return known;
    const query = { outputs, fit: "aspect", ...this.#modelQuery() };
    const { shape, data } = await sendNpy({ path: "v1/images:embed", query, image: stage.file, signal });
    const [height, width, depth] = shape.slice(-3);
    const made = { height, width, depth, data };
    this.#patches.set(stage.file, { ...this.#patches.get(stage.file), [outputs]: made });
    return made;
  }

  async #compareWithPatch(stages, signal) {
    for (const stage of stages) await this.#patchesOf(stage, signal);
    if (!this.point) return;
    const { height, width, depth, data } = await this.#patchesOf(this.point.stage, signal);
    const at = indexAt(this.point, height, width) * depth;
    await this.#paintSimilarity(stages, data.subarray(at, at + depth), signal);
    const rows = { x: (Math.floor(this.point.x * width) + 0.5) / width, y: (Math.floor(this.point.y * height) + 0.5) / height };
    this.point.stage.mark(rows);
  }

  async #compareWithSentence(stages, signal) {
    const text = $("#sentence").value.trim();
    if (!text) return;
    const json = { texts: [text], ...this.#modelQuery() };
    const answer = await sendJson({ path: "v1/texts:embed", json, signal });
    await this.#paintSimilarity(stages, answer.data[0].embedding, signal);
  }

  /** Paint cosines with one vector; all images share the scale of colours. */
  async #paintSimilarity(stages, vector, signal) {
    const maps = new Map();
    for (const stage of stages) {
      const { height, width, depth, data } = await this.#patchesOf(stage, signal);
      const values = new Float32Array(height * width);
      for (let i = 0; i < values.length; i++) {
        let sum = 0;
        for (let d = 0; d < depth; d++) sum += data[i * depth + d] * vector[d];
        values[i] = sum;
      }
      maps.set(stage, { height, width, values });
    }
    const ranges = [...maps.values()].map(({ values }) => rangeOf(values));
    const range = [Math.min(...ranges.map(([low]) => low)), Math.max(...ranges.map(([, high]) => high))];
    for (const [stage, map] of maps) paintScale(stage, map, range);
    this.#shown = maps;
  }

  /** The request of colours or groups. */
  #viewRequest(kind, image) {
    const query = { kind, features: $("#embeddings").value, size: "model", ...this.#modelQuery() };
    if (kind === "groups") query.group_count = Number($("#group-count").value);
    return { path: "v1/images:features", query, image, accept: "image/png" };
  }

  async #paintView(stages, kind, signal) {
    for (const stage of stages) {
      const answer = await send({ ...this.#viewRequest(kind, stage.file), signal });
      stage.paintImage(await createImageBitmap(await answer.blob()));
    }
  }

  #share(kind) {
    const { file } = this.app;
    if (kind === "colors" || kind === "groups") {
      const request = this.#viewRequest(kind, file);
      const files = [{ label: "Save npy", id: "save-npy", suffix: `${kind}.npy`, request: file && (() => ({ ...request, accept: "application/x-npy" })) }];
      const curl = file && (() => ({ ...request, output: `${kind}.png` }));
      const python = file && (() => ({ method: "features", options: request.query, result: "answer.shape" }));
      return offerShare({ ...this.app.shared(), files, curl, python });
    }
    const outputs = $("#embeddings").value;
    const query = { outputs, fit: "aspect", ...this.#modelQuery() };
    const request = { path: "v1/images:embed", query, image: file, accept: "application/x-npy" };
    const files = [{ label: "Save npy", id: "save-npy", suffix: `${outputs}.npy`, request: file && (() => request) }];
    const curl = file && (() => ({ ...request, output: `${outputs}.npy` }));
    const python = file && (() => ({ method: "embed_images", options: query, result: `answer.${outputs}.shape` }));
    offerShare({ ...this.app.shared(), files, curl, python });
  }

  /** What the link of this tab restores. */
  link() {
    const kind = $("[name=kind]:checked").value;
    return { kind: kind !== "similarity" && kind, text: kind === "sentence" && $("#sentence").value };
  }

  restore({ kind = "similarity", text = "" }) {
    const radio = [...document.querySelectorAll("[name=kind]")].find(({ value }) => value === kind);
    if (radio) radio.checked = true;
    $("#sentence").value = text;
  }
}
