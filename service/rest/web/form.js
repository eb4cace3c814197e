//# allFunctionsCalledOnLoad
// Parts of forms: downloads, copied text, and work that a newer request replaces.

const TOAST_MS = 6000;

/** Look an element up. */
export const $ = (selector, root = document) => root.querySelector(selector);

/** Create an element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

let toastTimer;

/** Say something; screen readers read it out. */
export function say(text, isError = false) {
  const toast = $("#toast");
  toast.textContent = text;
  toast.classList.toggle("error", isError);
  clearTimeout(toastTimer);
  if (text && !isError) toastTimer = setTimeout(() => say(""), TOAST_MS);
}

/** The words in a text, which commas separate. */
export const wordsIn = (text) => text.split(",").map((word) => word.trim()).filter(Boolean);

/** Let the browser save bytes. */
export function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Copy text, and show it where the clipboard is closed to pages (plain HTTP on another machine). */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    const dialog = $("#copied");
    $("pre", dialog).textContent = text;
    dialog.showModal();
  }
}

/** Runs one job at a time: a new one aborts the one before. The page is busy while any runs. */
export class Latest {
  static #numRunning = 0;
  #controller = new AbortController();

  /** End the job, if one runs. */
  abort() {
    this.#controller.abort();
  }

  /** @param {(signal: AbortSignal) => Promise<void>} job */
  async run(job) {
    this.#controller.abort();
    const own = (this.#controller = new AbortController());
    Latest.#numRunning += 1;
    try {
      const done = job(own.signal); // first, since it sends a request
      document.body.ariaBusy = "true";
      await done;
      if (!own.signal.aborted && $("#toast").classList.contains("error")) say("");
    } catch (error) {
      if (error.name === "AbortError") return;
      say(error.message, true);
      if (error.status === 401) $("#key").showModal();
    } finally {
      Latest.#numRunning -= 1;
      document.body.ariaBusy = String(Latest.#numRunning > 0);
    }
  }
}
