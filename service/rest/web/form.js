//# allFunctionsCalledOnLoad
// Parts of forms: chips of words, downloads, copied text, and work that a newer request replaces.

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

/** A word with a button that removes it. */
export function chip(word, remove) {
  const button = element("button", { type: "button", textContent: "×", ariaLabel: `Remove ${word}` });
  button.addEventListener("click", remove);
  return element("span", { className: "chip" }, word, button);
}

/** An input whose words become chips: Enter or a comma adds, Backspace or a chip's button removes. */
export class Chips extends EventTarget {
  constructor(root) {
    super();
    this.root = root;
    this.input = $("input", root);
    this.words = [];
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === ",") {
        event.preventDefault();
        this.#take();
      } else if (event.key === "Backspace" && !this.input.value && this.words.length) {
        this.set(this.words.slice(0, -1));
      }
    });
    this.input.addEventListener("change", () => this.#take());
  }

  /** Replace the words. */
  set(words) {
    this.words = [...new Set(words)];
    this.dispatchEvent(new Event("change"));
    for (const chip of this.root.querySelectorAll(".chip")) chip.remove();
    for (const word of this.words) {
      this.input.before(chip(word, () => {
        this.set(this.words.filter((other) => other !== word));
        this.input.focus();
      }));
    }
  }

  #take() {
    const added = this.input.value.split(",").map((word) => word.trim()).filter(Boolean);
    if (added.length) this.set([...this.words, ...added]); // first, since it sends a request
    this.input.value = "";
  }
}

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
      if (!own.signal.aborted) say("");
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
