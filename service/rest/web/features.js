// Patch embeddings as an image: their principal components as colours, or groups of alike ones.

import { send } from "./api.js";
import { $, Latest } from "./form.js";
import { offerShare } from "./share.js";

export class Features {
  #latest = new Latest();

  constructor(app) {
    this.app = app;
    for (const field of document.querySelectorAll("[name=kind], #group-count, #embeddings")) {
      field.addEventListener("change", () => this.refresh());
    }
  }

  get #kind() {
    return $("[name=kind]:checked").value;
  }

  /** What the link of this tab restores. */
  link() {
    return { kind: this.#kind === "groups" && `${$("#group-count").value} groups` };
  }

  restore({ kind = "colors" }) {
    const count = parseInt(kind, 10);
    $(`[name=kind][value=${count ? "groups" : "colors"}]`).checked = true;
    if (count) $("#group-count").value = count;
  }

  refresh() {
    const { stage, file } = this.app;
    $("#groups-field").hidden = this.#kind !== "groups";
    stage.clear();
    this.app.fade(true);
    this.#share();
    if (!file) return;
    return this.#latest.run(async (signal) => {
      const answer = await send({ ...this.#request("image/png"), signal });
      const image = await createImageBitmap(await answer.blob());
      if (!signal.aborted) stage.paintImage(image);
    });
  }

  /** Another tab draws from now on. */
  stop() {
    this.#latest.abort();
  }

  read() {
    return "";
  }

  #request(accept) {
    const query = { kind: this.#kind, features: $("#embeddings").value, size: "model", ...this.app.modelQuery };
    if (this.#kind === "groups") query.group_count = Number($("#group-count").value);
    return { path: "v1/images:features", query, image: this.app.file, accept };
  }

  #share() {
    const kind = this.#kind;
    const files = [{ label: "Save npy", id: "save-npy", suffix: `${kind}.npy`, request: () => this.#request("application/x-npy") }];
    const curl = () => ({ ...this.#request("image/png"), output: `${kind}.png` });
    const python = () => ({ method: "features", options: this.#request().query, result: "answer.shape" });
    offerShare({ ...this.app.shared(), files, curl, python });
  }
}
