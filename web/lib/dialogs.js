// Dialogs for the whole memory plan and for a run record.
import { dialog, element } from "./dom.js";
import { inPageLanguage, t, time } from "./i18n.js";

/** @import { Plan, RunRecord } from "./types" */

/** @param {Plan} plan */
export function showPlan(plan) {
  dialog(t("title.plan"), t("close"), element("pre", {}, ...planParts(plan.text ?? "")));
}

// A plan's text as a table between lines, so that columns stay below each other in any language.
/** @param {string} text */
export function planParts(text) {
  const parts = [];
  let table = null;
  for (const line of text.split("\n")) {
    const cells = line.split(/ {2,}/);
    if (cells[0] === "phase") parts.push((table = element("table", {})));
    if (cells.length < 3) table = null;
    if (table) table.append(element("tr", {}, ...cells.map((cell) => element("td", {}, inPageLanguage(cell)))));
    else parts.push(element("div", {}, planLine(line) || "\u00a0"));
  }
  return parts;
}

// "- sample: …", where the sentence may be known without the phase it is about.
/** @param {string} line */
export function planLine(line) {
  const [, dash, sentence] = /** @type {string[]} */ (/^(- )?(.*)$/.exec(line));
  const shown = inPageLanguage(sentence);
  const [, phase, rest] = /^(\w+): (.+)$/.exec(sentence) ?? [];
  return (dash ?? "") + (phase && shown === sentence ? inPageLanguage(phase) + t("colon") + inPageLanguage(rest) : shown);
}

const LONG_TEXTS = ["prompt", "negative_prompt", "expanded", "frozen_prompt"];
const SETTINGS = ["steps", "cfg", "shift", "strength", "seed", "speed"];

/** @param {RunRecord} record */
export function showRecord(record) {
  const rows = Object.entries(record).filter(([, value]) => value !== null && value !== "");
  const texts = rows.filter(([name]) => LONG_TEXTS.includes(name)).map(([name, value]) => textSection(name, value));
  const rest = rows.filter(([name]) => !LONG_TEXTS.includes(name));
  dialog(
    t("title.record"), t("close"), table(factsOf(record)), ...texts,
    record.seconds ? element("h4", {}, t("phases")) : null,
    record.seconds ? table(Object.entries(record.seconds).map(([name, value]) => /** @type {[string, unknown]} */ ([t(`phase.${name}`), time(value)]))) : null,
    element(
      "details", {}, element("summary", {}, t("allValues")),
      table(rest.map(([name, value]) => /** @type {[string, unknown]} */ ([name, formatValue(value)]))),
    ),
  );
}

// What a person asks first: which model, how large, with which settings, how long it took.
/** @param {RunRecord} record */
export function factsOf(record) {
  const { width, height, num_frames: frames, seconds, loras, found } = record;
  const took = seconds ? Object.values(seconds).reduce((sum, value) => sum + value, 0) : null;
  const facts = {
    model: record.model === "built-in" ? t("toy") : record.model,
    loras: loras?.map((/** @type {any} */ lora) => lora.name ?? lora).join(", "),
    size: width && height ? `${width}×${height}` : null,
    length: frames ? t("frames", { count: frames }) : null,
    ...Object.fromEntries(SETTINGS.map((name) => [name, record[name]])),
    found: found && Object.entries(found).map(([name, share]) => `${name} ${share} %`).join(", "),
    device: record.device,
    time: took === null ? null : time(took),
    peak: record.peak_vram_gb ? `${record.peak_vram_gb} GB` : null,
  };
  return Object.entries(facts)
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => /** @type {[string, unknown]} */ ([t(`fact.${name}`), value]));
}

/** @param {string} name @param {string} text */
function textSection(name, text) {
  const copy = () => navigator.clipboard?.writeText(text);
  return element(
    "section", {},
    element("h4", {}, t(`fact.${name}`), " ", element("button", { onclick: copy }, t("copy"))),
    element("p", { class: "piying-long" }, text),
  );
}

/** @param {any} value */
const formatValue = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

/** @param {[string, unknown][]} rows */
const table = (rows) => element(
  "table", {}, ...rows.map(([name, value]) => (
    element("tr", {}, element("th", {}, name), element("td", {}, String(value)))
  )),
);
