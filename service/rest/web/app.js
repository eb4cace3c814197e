// The page: the image, the model, and one tab at a time.

import { preload, sendJson, setKey } from "./api.js";
import { Features } from "./features.js";
import { $, element, say } from "./form.js";
import { Maps } from "./maps.js";
import { Masks } from "./masks.js";
import { Search } from "./search.js";
import { Stage } from "./stage.js";
import { Status } from "./status.js";

const EXAMPLES = [
  { file: "web/scene.png", label: "a drawn scene", classes: ["burger", "sunflower", "book"] },
  { file: "web/squirrel.jpg", label: "a photograph", classes: ["squirrel", "tree", "leaf"] },
  { file: "web/fruits.jpg", label: "a difficult photograph", classes: ["orange", "banana", "lemon", "kiwi"] },
];

class App {
  constructor() {
    this.file = null;
    this.model = null;
    this.isDefaultModel = true;
    this.stage = new Stage($("#stage"), "Image; arrow keys read it, with Shift they select a box, Enter picks");
    this.second = new Stage($("#second"), "Second image; arrow keys read it, Enter picks a patch");
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
    this.#loadModels();
  }

  async open(file) {
    this.file = file;
    preload(file).catch(() => {});
    this.tabs.features.forget();
    $("#reading").textContent = "";
    $("#intro").hidden = true;
    // The request does not wait for the image on the screen.
    await Promise.all([this.#show(file), this.tabs[this.current].refresh()]);
  }

  async #show(file) {
    if (!(await this.stage.show(file))) {
      say("This browser cannot show the image; the server may still read it.", true);
    }
  }

  #listen() {
    $("#file").addEventListener("change", ({ target }) => target.files.length && this.open(target.files[0]));
    document.addEventListener("paste", ({ clipboardData }) => this.#openFirst(clipboardData.files));
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      this.#openFirst(event.dataTransfer.files);
    });
    for (const stage of [this.stage, this.second]) {
      stage.addEventListener("hover", ({ detail }) => {
        $("#reading").textContent = this.tabs[this.current].read(detail, stage);
      });
      stage.addEventListener("pick", ({ detail }) => {
        this.tabs[this.current].pick?.(detail, stage);
      });
    }
    const tabs = [...document.querySelectorAll("[role=tab]")];
    for (const tab of tabs) {
      tab.addEventListener("click", () => this.#choose(tab.getAttribute("aria-controls")));
      tab.addEventListener("keydown", ({ key }) => this.#moveFocus(tab, key));
    }
    $("#model").addEventListener("change", ({ target }) => this.#useModel(target.selectedIndex));
    $("#key").addEventListener("close", () => {
      setKey($("#key-input").value);
      this.#loadModels();
    });
  }

  #openFirst(files) {
    const image = [...files].find(({ type }) => type.startsWith("image/"));
    if (image) this.open(image);
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
    this.current = name;
    for (const tab of document.querySelectorAll("[role=tab]")) {
      const isChosen = tab.getAttribute("aria-controls") === name;
      tab.setAttribute("aria-selected", String(isChosen));
      tab.tabIndex = isChosen ? 0 : -1;
      $(`#${tab.getAttribute("aria-controls")}`).hidden = !isChosen;
    }
    this.tabs.masks.listen(name === "masks");
    $("#second").hidden = name !== "features" || !this.second.file;
    $("#reading").textContent = "";
    this.tabs[name].refresh();
  }

  #addExamples() {
    for (const { file, label, classes } of EXAMPLES) {
      const button = element("button", { type: "button" }, label);
      button.addEventListener("click", async () => {
        const response = await fetch(file);
        $("#threshold").value = "";
        $("[name=by][value=words]").checked = true;
        this.file = null;
        this.tabs.masks.classes.set(classes);
        await this.open(new File([await response.blob()], file.split("/").pop()));
      });
      $("#examples").append(button, " ");
    }
  }

  async #loadModels() {
    try {
      this.models = (await sendJson({ path: "v1/models" })).data;
      $("#model").replaceChildren(...this.models.map(({ id }) => element("option", {}, id)));
      this.#useModel(0);
    } catch (error) {
      say(error.message, true);
      if (error.status === 401) $("#key").showModal();
    }
  }

  #useModel(index) {
    this.model = this.models[index];
    this.isDefaultModel = index === 0;
    $("#resolution").step = this.model.size_multiple;
    this.tabs.features.forget();
    this.tabs.search.forget();
    this.tabs.maps.offer(this.model.outputs);
    const isGone = $(`#tab-${this.current}`).hidden;
    this.#choose(isGone ? "masks" : this.current);
  }
}

new App();
