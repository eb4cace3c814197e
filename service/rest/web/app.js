// The page: the image, the model, and one tab at a time.

import { preload, sendJson, setKey } from "./api.js";
import { EXAMPLES } from "./examples.js";
import { Features } from "./features.js";
import { $, element, say } from "./form.js";
import { readLink, writeLink } from "./link.js";
import { Maps } from "./maps.js";
import { Masks } from "./masks.js";
import { Search } from "./search.js";
import { Stage } from "./stage.js";
import { Status } from "./status.js";

class App {
  // How many images were asked for; one that comes late is not opened over a later one.
  #numAsked = 0;

  constructor() {
    this.file = null;
    // What a link says of the image: an example's name, or an address.
    this.source = "";
    this.model = null;
    this.isDefaultModel = true;
    this.stage = new Stage($("#stage"), "Image; arrow keys read it, with Shift they select a box, Enter picks");
    this.second = new Stage($("#second"), "The map; arrow keys read it");
    this.tabs = {
      masks: new Masks(this),
      features: new Features(this),
      maps: new Maps(this),
      search: new Search(this),
      status: new Status(this),
    };
    this.current = "masks";
    this.#listen();
    this.#addExamples();
    this.#restore();
    this.#loadModels();
  }

  /** Open an image; `source` is what a link says of it. */
  async open(file, source = "") {
    this.#numAsked += 1;
    this.file = file;
    this.source = source;
    preload(file).catch(() => {});
    $("#reading").textContent = "";
    $("#empty").hidden = true;
    for (const button of document.querySelectorAll("#examples button")) {
      button.ariaPressed = String(button.dataset.name === source);
    }
    // The request does not wait for the image on the screen.
    await Promise.all([this.#show(file), this.refresh()]);
  }

  /** Ask again for what the current tab shows, and write the link to it. */
  refresh() {
    const refreshed = this.tabs[this.current].refresh();
    this.writeLink();
    return refreshed;
  }

  writeLink() {
    const tab = this.current !== "masks" && this.current;
    const model = !this.isDefaultModel && this.model.id;
    writeLink({ image: this.source, tab, model, ...this.tabs.masks.link(), ...this.tabs[this.current].link?.() });
  }

  /** Let layers of pixels be faded, or not. */
  fade(isFaded) {
    $("#opacity-field").hidden = !isFaded;
    for (const stage of [this.stage, this.second]) stage.opacity = isFaded ? Number($("#opacity").value) : 1;
  }

  /** Show two images side by side, or one. */
  split(hasTwo) {
    $("#second").parentElement.hidden = !hasTwo;
  }

  /** The model as an option of a request; the default one needs none. */
  get modelQuery() {
    return this.isDefaultModel ? {} : { model: this.model.id };
  }

  /** What every tab says of its image when it offers files. */
  shared() {
    return { stage: this.stage, file: this.file, name: this.file?.name.replace(/\.\w+$/, "") ?? "" };
  }

  async #show(file) {
    if (!(await this.stage.show(file))) {
      say("This browser cannot show the image; the server may still read it.", true);
    }
  }

  #listen() {
    $("#file").addEventListener("change", ({ target }) => target.files.length && this.#openOwn(target.files[0]));
    document.addEventListener("paste", ({ clipboardData }) => this.#openFirst(clipboardData.files));
    for (const kind of ["dragover", "dragleave", "drop"]) {
      document.addEventListener(kind, (event) => {
        event.preventDefault();
        $("#stages").classList.toggle("over", kind === "dragover");
        if (kind === "drop") this.#openFirst(event.dataTransfer.files);
      });
    }
    for (const stage of [this.stage, this.second]) {
      const tell = (text) => ($("#reading").textContent = text);
      stage.addEventListener("hover", ({ detail }) => tell(this.tabs[this.current].read(detail)));
      stage.addEventListener("leave", () => {
        tell("");
        this.tabs[this.current].leave?.();
      });
      stage.addEventListener("pick", ({ detail }) => this.tabs[this.current].pick?.(detail, stage));
    }
    $("#opacity").addEventListener("input", () => this.fade(true));
    const tabs = [...document.querySelectorAll("[role=tab]")];
    for (const tab of tabs) {
      tab.addEventListener("click", () => this.#choose(tab.getAttribute("aria-controls")));
      tab.addEventListener("keydown", ({ key }) => this.#moveFocus(tab, key));
    }
    $("#model").addEventListener("change", ({ target }) => this.#useModel(target.selectedIndex));
    $("#key").addEventListener("close", () => {
      setKey($("#key-input").value);
      this.#loadModels();
      this.refresh();
    });
    addEventListener("hashchange", () => this.#restore());
    // Whatever a tab asks of the server is in the link.
    $("#controls").addEventListener("change", () => this.writeLink());
    $("#controls").addEventListener("click", () => this.writeLink());
  }

  /** Open the first image of what was dropped or pasted; a browser may not know HEIC's type. */
  #openFirst(files) {
    const [first] = files;
    const image = [...files].find(({ name, type }) => type.startsWith("image/") || /\.hei[cf]$/i.test(name));
    if (image) this.#openOwn(image);
    else if (first) say(`${first.name} is not an image. Open a JPEG, PNG, WebP, GIF, BMP, TIFF or HEIC file.`, true);
  }

  /** Open an image of the user, for which the words of an example are none. */
  #openOwn(file) {
    const example = EXAMPLES.find(({ name }) => name === this.source);
    if (example?.words.join() === this.tabs.masks.words.join()) this.tabs.masks.use([]);
    return this.open(file);
  }

  #moveFocus(tab, key) {
    const shown = [...document.querySelectorAll("[role=tab]:not([hidden])")];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const next = shown[(shown.indexOf(tab) + step + shown.length) % shown.length];
    next.focus();
    this.#choose(next.getAttribute("aria-controls"));
  }

  #choose(name) {
    this.#select(name);
    this.refresh();
  }

  #select(name) {
    this.tabs[this.current].stop?.();
    this.current = name;
    for (const tab of document.querySelectorAll("[role=tab]")) {
      const isChosen = tab.getAttribute("aria-controls") === name;
      tab.setAttribute("aria-selected", String(isChosen));
      tab.tabIndex = isChosen ? 0 : -1;
      $(`#${tab.getAttribute("aria-controls")}`).hidden = !isChosen;
    }
    this.stage.selectsBoxes = false;
    this.split(false);
    $("#reading").textContent = "";
  }

  #addExamples() {
    for (const { name, file, words, background } of EXAMPLES) {
      const image = element("img", { src: file, alt: name });
      const button = element("button", { type: "button", title: words.join(", "), ariaPressed: "false" }, image);
      button.dataset.name = name;
      button.addEventListener("click", () => {
        this.tabs.masks.use(words, background);
        this.#openKnown(name);
      });
      $("#examples").append(button);
    }
  }

  /** Show what the address of the page says; the first example if it says nothing. */
  #restore() {
    const link = readLink();
    const [{ name, words, background }] = EXAMPLES;
    const first = { image: name, words: words.join(","), background };
    const wanted = Object.keys(link).length ? link : first;
    for (const tab of Object.values(this.tabs)) tab.restore?.(wanted);
    this.#select(wanted.tab in this.tabs ? wanted.tab : "masks");
    if (wanted.image) return this.#openKnown(wanted.image);
    if (wanted.words) say("This link has words, and no image: open one.");
    this.refresh();
  }

  /** Open an example by its name, or an image by its address, on this server or a host of its policy. */
  async #openKnown(image) {
    const address = EXAMPLES.find(({ name }) => name === image)?.file ?? image;
    const asked = (this.#numAsked += 1);
    try {
      const response = await fetch(address);
      if (!response.ok) throw new Error(`the answer is ${response.status}`);
      const file = new File([await response.blob()], new URL(response.url).pathname.split("/").pop());
      if (asked === this.#numAsked) await this.open(file, image);
    } catch (error) {
      const rule = "the server's setting url_hosts must name its host, which must let pages read it (CORS)";
      const why = image.includes("://") ? rule : error.message;
      say(`${image} cannot be loaded: ${why}. Save it, and open the file.`, true);
    }
  }

  async #loadModels() {
    try {
      this.models = (await sendJson({ path: "v1/models" })).data;
      $("#model").replaceChildren(...this.models.map(({ id }) => element("option", {}, id)));
      $("#model").hidden = this.models.length < 2;
      const wanted = Math.max(0, this.models.findIndex(({ id }) => id === readLink().model));
      $("#model").selectedIndex = wanted;
      this.#useModel(wanted, wanted === 0 && this.current === "masks");
    } catch (error) {
      say(error.message, true);
      if (error.status === 401) $("#key").showModal();
    }
  }

  /** Use a model; `isAsked` is whether what is shown was asked of it before its name was known. */
  #useModel(index, isAsked = false) {
    this.model = this.models[index];
    this.isDefaultModel = index === 0;
    $("#resolution").step = this.model.size_multiple;
    this.tabs.maps.offer(this.model.outputs);
    if (isAsked) return;
    this.tabs.search.forget();
    this.#choose($(`#tab-${this.current}`).hidden ? "masks" : this.current);
  }
}

new App();
