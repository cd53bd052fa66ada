// Titles of the shipped workflows in ComfyUI's template browser, which shows file names, in the page's language.
import { api } from "../../../scripts/api.js";
import { LANGUAGES, templateTitles } from "./i18n.js";

// ComfyUI names a pack's templates by its folder, under which it serves this file.
const FOLDER = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-3) ?? "");
const PLACE = `/workflow_templates/${FOLDER}/`;

export function titleTemplates() {
  const { getWorkflowTemplates: list, apiURL: address } = api;
  api.getWorkflowTemplates = async function (/** @type {any[]} */ ...rest) {
    const templates = await list.apply(this, rest);
    if (templates[FOLDER]) templates[FOLDER] = inOrder(templates[FOLDER]);
    return templates;
  };
  api.apiURL = function (/** @type {string} */ route, /** @type {any[]} */ ...rest) {
    return address.call(this, route.startsWith(PLACE) ? PLACE + fileOf(route.slice(PLACE.length)) : route, ...rest);
  };
}

// The order of the texts is the one in which a person meets the jobs; a file without a title comes last.
/** @param {string[]} names */
export function inOrder(names) {
  const titles = templateTitles();
  const known = Object.keys(titles).filter((name) => names.includes(name));
  return [...known.map((name) => titles[name]), ...names.filter((name) => !(name in titles))];
}

/** @param {string} request */
export function fileOf(request) {
  const [, title, ending] = /^(.*)(\.\w+)$/.exec(request) ?? [null, request, ""];
  // A browser that is open while the language changes goes on with the titles it has.
  const known = LANGUAGES.flatMap((code) => Object.entries(templateTitles(code)));
  const found = known.find(([, one]) => one === title);
  return (found?.[0] ?? title) + ending;
}
