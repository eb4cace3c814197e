//# allFunctionsCalledOnLoad
// Requests to the public API, and the same requests as lines of curl and Python.
// With the first line of this file and others, Chromium compiles them before their first use.

const KEY = "tipserve-key";

/** Fires `answer` with {status, timing} after each request. */
export const requests = new EventTarget();

/** An error of the API: its message says what to change. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Encoded forms of files, {type, bytes}. For a form that refers to a file, the browser would ask
// another of its processes before it sends.
const bodies = new WeakMap();

const formOf = (image) => {
  const form = new FormData();
  form.append("image", image, image.name);
  return form;
};

/** Read a file before it is sent, as the body of a request. */
export async function preload(image) {
  const body = new Response(formOf(image));
  bodies.set(image, { type: body.headers.get("Content-Type"), bytes: await body.arrayBuffer() });
}

/** Keep the API key for this tab. */
export const setKey = (key) => sessionStorage.setItem(KEY, key);

const url = (path, query) => {
  const pairs = Object.entries(query).filter(([, value]) => value !== "" && value !== undefined);
  const text = pairs.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
  return path + (text && `?${text}`);
};

/**
 * Send a request.
 *
 * @param {object} request `path`; `query`, by name, without what is empty; `image`, a File; or
 *     `json`, the body; `accept`, a media type.
 * @returns {Promise<Response>}
 * @throws {ApiError} The server refused it, or did not answer.
 */
export async function send({ path, query = {}, image, json, accept = "application/json", signal }) {
  const headers = { Accept: accept };
  const key = sessionStorage.getItem(KEY);
  if (key) headers["X-API-Key"] = key;
  const options = { headers, signal };
  if (image) {
    options.method = "POST";
    const ready = bodies.get(image);
    options.body = ready?.bytes ?? formOf(image);
    if (ready) headers["Content-Type"] = ready.type;
  } else if (json) {
    options.method = "POST";
    options.body = JSON.stringify(json);
    headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(url(path, query), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer.");
  }
  const timing = response.headers.get("Server-Timing");
  requests.dispatchEvent(new CustomEvent("answer", { detail: { path, status: response.status, timing } }));
  if (response.ok) return response;
  const text = await response.text();
  let message = text;
  try {
    const { error } = JSON.parse(text);
    message = error.message ?? error;
  } catch {
    // A proxy's page of an error.
  }
  throw new ApiError(response.status, message || `The server answers ${response.status}.`);
}

/** Read JSON up to its last byte; browsers say 1 to 2 ms later that the answer has ended. */
async function jsonOf({ headers, body }) {
  const length = headers.has("Content-Encoding") ? Infinity : Number(headers.get("Content-Length") ?? Infinity);
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  let count = 0;
  while (count < length) {
    const { done, value } = await reader.read();
    if (done) break;
    count += value.length;
    text += decoder.decode(value, { stream: true });
  }
  return JSON.parse(text);
}

export const sendJson = async (request) => jsonOf(await send(request));

/** An npy answer: `{shape, data}` with a Float32Array. */
export async function sendNpy(request) {
  const buffer = await (await send({ ...request, accept: "application/x-npy" })).arrayBuffer();
  const view = new DataView(buffer);
  const start = 10 + view.getUint16(8, true);
  const header = new TextDecoder().decode(buffer.slice(10, start));
  if (!header.includes("'<f4'")) throw new ApiError(0, `Unexpected array: ${header.trim()}`);
  const shape = [...header.match(/\(([^)]*)\)/)[1].matchAll(/\d+/g)].map(Number);
  return { shape, data: new Float32Array(buffer.slice(start)) };
}

/** A file as a data URI, which a JSON body can have as an image. */
export const dataUri = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ApiError(0, `${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });

/** Bytes of base64; `Uint8Array.from(atob(data), ...)` takes most of a second for a megapixel. */
function bytesOf(data) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(data);
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** The numbers of a float32 array in an answer with `encoding=base64`. */
export const decodeFloats = ({ data }) => new Float32Array(bytesOf(data).buffer);

const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const file = (image) => image.name || "photo.jpg";

/** The request as a line of curl; its JSON gets the images that are sent in it from `files`. */
export function asCurl({ path, query = {}, image, json, files, accept = "application/json" }, output) {
  const address = quote(new URL(url(path, query), document.baseURI).href);
  const rest = `-H ${quote(`Accept: ${accept}`)} ${address} -o ${output}`;
  if (!json) return `curl -F ${quote(`image=@${file(image)}`)} ${rest}`;
  const body = quote(JSON.stringify({ ...json, images: files.map((_, index) => `<${index}>`) }));
  const filled = body.replace(/<(\d+)>/g, (_, index) => `'"$(base64 -w0 ${quote(file(files[index]))})"'`);
  return `printf %s ${filled} | curl --json @- ${rest}`;
}

/** Lines of Python that stand for themselves. */
export class Code extends String {}

const literal = (value) => {
  if (value instanceof Code) return String(value);
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  return typeof value === "number" ? String(value) : JSON.stringify(value);
};

/** A call of the Python client: `method`, `options` with its types, and what to print of `answer`. */
export function asPython({ method, options, files, result }) {
  const words = Object.entries(options)
    .filter(([, value]) => value !== "" && value !== undefined)
    .map(([name, value]) => `, ${name}=${literal(value)}`)
    .join("");
  return [
    `from tipserve_client import Client${words.includes("Example(") ? ", Example" : ""}`,
    "",
    `with Client(${literal(new URL(".", document.baseURI).href.replace(/\/$/, ""))}) as client:`,
    `    answer, *_ = client.${method}(${literal(files.map(file))}${words})`,
    `    print(${result})`,
    "",
  ].join("\n");
}
