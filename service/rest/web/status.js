// What the server says of itself: the model, its runtime, and where time goes.

import { requests, sendJson } from "./api.js";
import { $, element, Latest } from "./form.js";
import { offerShare } from "./share.js";

const CARD = {
  id: "name",
  variant: "variant",
  licence: "licence",
  runtime: "runtime",
  precision: "precision",
  device: "device",
  runtime_reason: "reason",
  native_size: "native size",
  patch_size: "patch size",
  embed_dim: "embedding",
  package_digest: "digest",
};
const NS_PER_MS = 1e6;

export class Status {
  #latest = new Latest();
  // {path, status, timing} of the last request that is timed.
  #answer = null;

  constructor(app) {
    this.app = app;
    requests.addEventListener("answer", ({ detail }) => {
      if (!detail.timing || detail.path.startsWith("v2/")) return;
      this.#answer = detail;
      if (this.app.current === "status") this.#showTiming();
    });
  }

  refresh() {
    this.app.stage.clear();
    this.app.fade(false);
    offerShare(null);
    if (this.#answer) this.#showTiming();
    if (this.app.model) this.#showCard(this.app.model);
    return this.#latest.run(async (signal) => {
      const { model_stats } = await sendJson({ path: "v2/models/stats", signal });
      $("#statistics").replaceChildren(...model_stats.map(statistics));
    });
  }

  read() {
    return "";
  }

  #showCard(model) {
    const rows = Object.entries(CARD).flatMap(([field, label]) => [
      element("dt", {}, label),
      element("dd", {}, String(model[field])),
    ]);
    $("#card").replaceChildren(...rows);
    const scores = model.scores ?? [];
    const lines = scores.map(({ row, task, split, metric, value }) =>
      element("li", {}, `${task}, ${split}: ${row}, ${metric} ${value.toFixed(1)}`));
    $("#scores ul").replaceChildren(...lines);
    $("#scores").hidden = !scores.length;
  }

  #showTiming() {
    const { path, status, timing } = this.#answer;
    const stages = [...timing.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]);
    const longest = Math.max(...stages.map(([, ms]) => ms), 0.01);
    const bars = stages.map(([name, ms]) =>
      element("label", { className: "bar" }, name, element("meter", { max: longest, value: ms }), `${ms.toFixed(1)} ms`));
    $("#timing").replaceChildren(element("p", {}, `${path}, ${status}`), ...bars);
  }
}

function statistics({ name, inference_count, inference_stats }) {
  const mean = ({ count, ns }) => (count ? (ns / count / NS_PER_MS).toFixed(1) : "0");
  const { success, fail, queue, compute_infer } = inference_stats;
  return element(
    "p",
    {},
    `${name}: ${inference_count} items, ${success.count} requests answered, ${fail.count} failed; ` +
      `mean ${mean(queue)} ms in the queue, ${mean(compute_infer)} ms in the model`,
  );
}
