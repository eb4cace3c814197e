// Calls a server by the types of its OpenAPI document: prints the status and the data of each answer as JSON.
// `tsc` refuses this file if the document lacks an option, or if it allows a value that is not one.

import createClient from "openapi-fetch";
import type { paths } from "./api.js";

declare const process: { argv: string[] };
const [, , baseUrl, key, base64] = process.argv as [string, string, string, string, string];
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${key}` } });
const file = new Blob([Uint8Array.from(atob(base64), (byte) => byte.charCodeAt(0))]);

// The type of a file in a form is `string`; this is how openapi-fetch sends forms.
function bodySerializer(fields: unknown): FormData {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields as object)) {
    for (const one of [value].flat()) {
      if (one instanceof Blob) form.append(name, one, "image.png");
      else form.append(name, String(one));
    }
  }
  return form;
}

const json = await client.POST("/v1/images:embed", {
  body: { image: base64, outputs: ["cls1", "patches"], fit: "aspect" },
});
const form = await client.POST("/v1/images:embed", {
  body: { image: file as unknown as string, outputs: ["cls1", "patches"], fit: "aspect" },
  bodySerializer,
});
const raw = await client.POST("/v1/images:embed", {
  params: { query: { outputs: ["cls1", "patches"], fit: "aspect" } },
  body: file as unknown as string,
  bodySerializer: (body: unknown) => body as Blob,
  headers: { "Content-Type": "image/png" },
});
const classes = await client.POST("/v1/images:classify", {
  body: { image: base64, classes: ["dog", { name: "sky", prompts: ["the sky"] }], top_k: 1 },
});
const texts = await client.POST("/v1/texts:embed", { body: { texts: ["dog"], templates: "none" } });
const models = await client.GET("/v1/models");
const index = await client.POST("/v2/repository/index", { body: { ready: true } });
const wrong = await client.POST("/v1/images:embed", {
  // @ts-expect-error: the document lists the outputs.
  params: { query: { outputs: ["nonsense"] } },
  body: { image: base64 },
});

const answers = { json, form, raw, classes, texts, models, index, wrong };
const shown = Object.entries(answers).map(([name, { response, data, error }]) => [
  name,
  { status: response.status, content: data ?? error },
]);
console.log(JSON.stringify(Object.fromEntries(shown)));
