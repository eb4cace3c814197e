// Search in the user's own images: embedded once, compared in the page.

import { sendJson } from "./api.js";
import { $, element, Latest, say } from "./form.js";
import { offerShare } from "./share.js";

const PARALLEL = 4;
const SHOWN = 60;

export class Search {
  #latest = new Latest();
  // {file, vector, thumbnail} of each image.
  #entries = [];
  // {entry, score} of those shown, the best first.
  #found = [];

  constructor(app) {
    this.app = app;
    for (const id of ["folder", "images"]) {
      $(`#${id}`).addEventListener("change", ({ target }) => this.#embed([...target.files]));
    }
    $("#query").addEventListener("input", () => this.#findWords());
  }

  /** Embeddings of another model do not compare. */
  forget() {
    for (const { thumbnail } of this.#entries) URL.revokeObjectURL(thumbnail);
    this.#entries = [];
    $("#results").replaceChildren();
    $("#found").textContent = "";
    $("#query").disabled = true;
  }

  refresh() {
    this.app.stage.clear();
    this.app.fade(false);
    this.#share();
  }

  #share() {
    const [first] = this.#entries;
    const query = { outputs: "cls1", ...this.app.modelQuery };
    const table = () => new Blob(this.#found.map(({ entry, score = "" }) => `${score},"${entry.file.name.replaceAll('"', '""')}"\n`));
    const files = [{ label: "Save CSV", id: "save-csv", suffix: "ranking.csv", blob: table }];
    const request = { path: "v1/images:embed", query, image: first?.file, accept: "application/x-npy" };
    const curl = () => ({ ...request, output: "cls1.npy" });
    const python = () => ({ method: "embed_images", options: query, result: `client.embed_texts([${JSON.stringify($("#query").value)}]) @ answer.cls1` });
    offerShare({ name: "images", file: first?.file, files, curl, python });
  }

  read() {
    return "";
  }

  #embed(files) {
    const images = files.filter(({ type }) => type.startsWith("image/"));
    if (!images.length) return say("There are no images.", true);
    this.forget();
    return this.#latest.run(async (signal) => {
      const failed = [];
      const waiting = images.values();
      const progress = $("#progress");
      Object.assign(progress, { hidden: false, max: images.length, value: 0 });
      const work = async () => {
        for (const file of waiting) {
          await this.#embedOne(file, failed, signal);
          progress.value += 1;
        }
      };
      try {
        await Promise.all(Array.from({ length: PARALLEL }, work));
      } finally {
        progress.hidden = true;
      }
      const names = failed.slice(0, 3).join("; ");
      $("#found").textContent =
        `${this.#entries.length} images` + (failed.length ? `; ${failed.length} failed: ${names}` : "");
      $("#query").disabled = !this.#entries.length;
      this.#show(this.#entries.map((entry) => ({ entry })));
    });
  }

  async #embedOne(file, failed, signal) {
    try {
      const query = { outputs: "cls1", ...this.app.modelQuery };
      const answer = await sendJson({ path: "v1/images:embed", query, image: file, signal });
      const thumbnail = URL.createObjectURL(file);
      this.#entries.push({ file, vector: answer.data[0].cls1, thumbnail });
    } catch (error) {
      if (error.name === "AbortError" || error.status === 401) throw error;
      failed.push(`${file.name}: ${error.message}`);
    }
  }

  #findWords() {
    const text = $("#query").value.trim();
    if (!text) return this.#show(this.#entries.map((entry) => ({ entry })));
    return this.#latest.run(async (signal) => {
      const json = { texts: [text], ...this.app.modelQuery };
      const answer = await sendJson({ path: "v1/texts:embed", json, signal });
      this.#rank(answer.data[0].embedding);
    });
  }

  #rank(vector) {
    const scored = this.#entries.map((entry) => ({
      entry,
      score: entry.vector.reduce((sum, value, i) => sum + value * vector[i], 0),
    }));
    this.#show(scored.sort((a, b) => b.score - a.score));
  }

  #show(found) {
    this.#found = found;
    this.#share();
    const rows = found.slice(0, SHOWN).map(({ entry, score }) => {
      const image = element("img", { src: entry.thumbnail, alt: entry.file.name, loading: "lazy" });
      const button = element("button", { type: "button", title: "Find similar images" }, image);
      button.addEventListener("click", () => this.#rank(entry.vector));
      return element("li", {}, button, score === undefined ? entry.file.name : `cosine ${score.toFixed(3)}`);
    });
    $("#results").replaceChildren(...rows);
  }
}
