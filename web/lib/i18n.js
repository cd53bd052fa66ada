// Texts of the page from locales/LANGUAGE/main.json, messages of the server in the page's language, number formats.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

/** @import { Template } from "./types" */

export const LANGUAGES = ["en", "zh"];
/** @type {Record<string, Record<"page" | "phases" | "templates" | "messages" | "models", Record<string, any>>>} */
const texts = Object.fromEntries(LANGUAGES.map((code) => [code, { page: {}, phases: {}, templates: {}, messages: {}, models: {} }]));
/** @type {Template[]} */
let templates = []; // of the server's messages, the one with most words of its own first

// ComfyUI serves the locales of all packs at once.
export async function loadTexts() {
  const response = await api.fetchApi("/i18n");
  const served = response.ok ? await response.json() : {};
  for (const code of LANGUAGES) Object.assign(texts[code], served[code]?.piying);
  templates = [...readTemplates(texts.zh.messages), WAY];
}

export function language() {
  const chosen = app.extensionManager?.setting?.get("Comfy.Locale") ?? navigator.language ?? "en";
  return String(chosen).startsWith("zh") ? "zh" : "en";
}

/** @param {string} text @param {Record<string, any>} values */
const filled = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");

/** @param {string} key @param {Record<string, unknown>} [values] */
export function t(key, values = {}) {
  const { page, phases } = texts[language()];
  return filled(page[key] ?? phases[key] ?? texts.en.page[key] ?? key, values);
}

// What a person reads of a model of the manifest: { title, about }.
/** @param {string} id @returns {{ title?: string, about?: string }} */
export const modelTexts = (id) => texts[language()].models[id] ?? {};

/** @param {string} [code] @returns {Record<string, string>} */
export const templateTitles = (code = language()) => texts[code].templates;

const VALUE = `('[^']*'|"[^"]*"|[^]*?)`; // as the server quotes it, or as it is
/** @param {string} text */
const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

// Each message of the server is a sentence with {names} where values stand; what stands there may be a message again.
/** @param {Record<string, string>} messages @returns {Template[]} */
export function readTemplates(messages) {
  return Object.entries(messages)
    .map(([english, own]) => {
      const parts = english.split(/\{(\w+)\}/);
      const names = parts.filter((_, index) => index % 2);
      const words = parts.filter((_, index) => index % 2 === 0);
      return { names, own, size: words.join("").length, pattern: new RegExp(`^${words.map(escaped).join(VALUE)}$`) };
    })
    .sort((one, other) => other.size - one.size);
}

// A way of running a phase, "fp32, cpu, whole", alone and with what is said of it, as plans put them together.
const WAY_WORDS = "(?:bf16|fp16|fp32)\\b[^;]*?, (?:resident|streamed|cpu), \\w+(?:, \\w+ matmul)?(?:, on \\w+:\\d+)?";
const WAY_ALONE = new RegExp(`^${WAY_WORDS}$`);
const WAY = { names: ["way", "why"], own: "{way} {why}", pattern: new RegExp(`^(${WAY_WORDS}) (.+)$`) };

/** @param {string} text */
const englishWords = (text) => text.match(/[A-Za-z]{2,}/g)?.length ?? 0;

// All readings of a text: as one message, and as one message after another. Where a value ends is not written in it.
/** @param {string} text @param {Template[]} known @param {Map<string, string>} seen @returns {Generator<string>} */
function* readings(text, known, seen) {
  if (WAY_ALONE.test(text)) yield text.split(", ").map((word) => best(word, known, seen).replace(/^cpu$/, "CPU")).join("、");
  // Before the messages: of "a at b, or c with d" neither "a" nor "d" belongs to both.
  for (const [between, own] of [[", or ", `，${t("or")} `], [" and ", t("and")]]) {
    if (text.includes(between)) yield text.split(between).map((part) => best(part, known, seen)).join(own);
  }
  for (const { pattern, names, own } of known) {
    const found = pattern.exec(text);
    if (!found) continue;
    const values = found.slice(1)
      .map((value) => best(value.replace(/^([^.,]{1,20}) or ([^.,]{1,20})$/, `$1 ${t("or")} $2`), known, seen));
    yield filled(own, Object.fromEntries(names.map((name, index) => [name, values[index]])));
  }
  for (const end of text.matchAll(/(?<=\.)\s+/g)) {
    const [first, rest] = [text.slice(0, end.index), text.slice(end.index + end[0].length)];
    const shown = best(first, known, seen);
    yield shown + (shown === first ? end[0] : "") + best(rest, known, seen);
  }
}

// The reading that leaves the fewest words in English; what is in no reading stays as it is.
/** @param {string} text @param {Template[]} known @param {Map<string, string>} seen @returns {string} */
function best(text, known, seen) {
  const earlier = seen.get(text);
  if (earlier !== undefined) return earlier;
  let shown = text;
  seen.set(text, shown); // for a text that is a value of its own
  for (const reading of readings(text, known, seen)) {
    if (englishWords(reading) < englishWords(shown)) seen.set(text, (shown = reading));
  }
  return shown;
}

/** @param {string} text @param {Template[]} [known] */
export const translated = (text, known = templates) => text.split("\n").map((line) => best(line, known, new Map())).join("\n");

/** @param {string} text */
export const inPageLanguage = (text) => (language() === "zh" ? translated(text) : text);

/** @param {number} seconds */
export function time(seconds) {
  const [count, unit] = seconds < 10 ? [seconds.toFixed(1), "seconds"]
    : seconds < 120 ? [Math.round(seconds), "seconds"]
    : seconds < 7200 ? [Math.round(seconds / 60), "minutes"]
    : [(seconds / 3600).toFixed(1), "hours"];
  return t(unit, { count });
}

/** @param {number} count */
export function bytes(count) {
  for (const [unit, size] of Object.entries({ GB: 1e9, MB: 1e6, kB: 1e3 })) {
    if (count >= size) return `${(count / size).toFixed(1)} ${unit}`;
  }
  return `${count} B`;
}
