//# allFunctionsCalledOnLoad
// The rows of classes: colour, name, share of the image, and a button that removes the class.

import { element } from "./form.js";

const percent = (share) => (share ? `${(100 * share).toFixed(share < 0.01 ? 1 : 0)} %` : "not found");

/** Fires `alone` when another class is looked at, and `remove` with an index. */
export class Classes extends EventTarget {
  #names = [];
  #pointed = null;
  #pinned = null;

  /** @param {HTMLElement} list Gets the rows. */
  constructor(list) {
    super();
    this.list = list;
  }

  /** Make a row for each name, still without shares. */
  set(names) {
    if (names.join("\n") === this.#names.join("\n")) return;
    this.#names = [...names];
    this.#pointed = this.#pinned = null;
    this.list.replaceChildren(...names.map((name, index) => this.#row(name, index)));
  }

  #row(name, index) {
    const swatch = element("span", { className: "swatch" });
    const share = element("span", { className: "share" });
    const show = element("button", { type: "button", ariaPressed: "false" }, swatch, element("span", { className: "name" }, name), share);
    show.addEventListener("click", () => this.#pin(index));
    show.addEventListener("focus", () => this.point(index));
    show.addEventListener("blur", () => this.point(null));
    const remove = element("button", { type: "button", className: "remove", textContent: "×", ariaLabel: `Remove ${name}` });
    remove.addEventListener("click", () => this.dispatchEvent(new CustomEvent("remove", { detail: index })));
    const row = element("li", {}, show, remove);
    row.addEventListener("pointerenter", () => this.point(index));
    row.addEventListener("pointerleave", () => this.point(null));
    return row;
  }

  /** Write colours and shares of an answer's classes into the rows; null takes the shares away. */
  tell(classes) {
    [...this.list.children].forEach((row, index) => {
      const { color, area_share: share } = classes?.[index] ?? {};
      if (color) row.querySelector(".swatch").style.background = color;
      row.querySelector(".share").textContent = classes ? percent(share) : "";
      row.classList.toggle("absent", share === 0);
    });
  }

  /** The index of the class to show alone, or null. */
  get alone() {
    return this.#pointed ?? this.#pinned;
  }

  /** Look at one class, or no more at one. */
  point(index) {
    const before = this.alone;
    this.#pointed = index;
    [...this.list.children].forEach((row, at) => row.classList.toggle("pointed", at === index));
    if (this.alone !== before) this.dispatchEvent(new Event("alone"));
  }

  /** Show one class alone until it is clicked again. */
  #pin(index) {
    this.#pinned = this.#pinned === index ? null : index;
    [...this.list.children].forEach((row, at) => {
      row.firstChild.ariaPressed = String(at === this.#pinned);
    });
    this.dispatchEvent(new Event("alone"));
  }
}
