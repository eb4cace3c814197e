// What can be taken away from every tab: the image as shown, the answer as a file, lines of code, a link.

import { asCurl, asPython, send } from "./api.js";
import { $, copy, element, save, say } from "./form.js";

// It stays when a tab offers others: a click on it that ends the typing of a word is not lost.
$("#copy-link").addEventListener("click", () => copy(location.href));

/** A button whose failure is told. */
function button(label, id, act, isOff) {
  const made = element("button", { type: "button", id, disabled: isOff }, label);
  made.addEventListener("click", async () => {
    try {
      await act();
    } catch (error) {
      say(error.message, true);
    }
  });
  return made;
}

/**
 * Show the buttons of a tab.
 *
 * @param {object|null} offer Null for a tab without any. Else `stage`, whose image can be saved;
 *     `name`, of files; `files`, each with `label`, `id`, `suffix` and `request` (or `blob`), and
 *     `convert`, from the answer's JSON to the file's; `curl`, a request with `output`; `python`,
 *     `{method, options, result}`; `file`, the image.
 */
export function offerShare(offer) {
  $("#share").hidden = !offer;
  if (!offer) return;
  const { stage, name, files = [], curl, python, file } = offer;
  const own = files.map(({ label, id, suffix, request, blob, convert }) =>
    button(label, id, async () => {
      let content = blob ? blob() : await (await send(await request())).blob();
      if (convert) content = new Blob([JSON.stringify(convert(JSON.parse(await content.text())))]);
      save(content, `${name}-${suffix}`);
    }, !file || (!request && !blob)));
  const image = stage && button("Save image", "save-image", async () => save(await stage.compose(), `${name}-shown.png`), !file);
  const lines = [
    button("Copy curl", "copy-curl", async () => {
      const { output, ...request } = await curl();
      return copy(asCurl(request, output));
    }, !file || !curl),
    button("Copy Python", "copy-python", () => copy(asPython({ files: [file], ...python() })), !file || !python),
  ];
  $("#offers").replaceChildren(...[image, ...own, ...lines].filter(Boolean));
}
