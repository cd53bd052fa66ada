// Dialogs for the whole memory plan and for a run record.
import { dialog, element } from "./dom.js";
import { t } from "./i18n.js";

export function showPlan(plan) {
  dialog(t("title.plan"), t("close"), element("pre", {}, plan.text));
}

const LONG_TEXTS = new Set(["prompt", "negative_prompt", "expanded", "frozen_prompt"]);

export function showRecord(record) {
  const rows = Object.entries(record).filter(([, value]) => value !== null && value !== "");
  const short = rows.filter(([name]) => !LONG_TEXTS.has(name) && name !== "seconds");
  const texts = rows.filter(([name]) => LONG_TEXTS.has(name)).map(([name, value]) => textSection(name, value));
  dialog(
    t("title.record"), t("close"), ...texts,
    record.seconds ? element("h4", {}, t("phases")) : null,
    record.seconds ? table(Object.entries(record.seconds)) : null,
    table(short.map(([name, value]) => [name, formatValue(value)])),
  );
}

function textSection(name, text) {
  const copy = () => navigator.clipboard?.writeText(text);
  return element(
    "section", {},
    element("h4", {}, name, " ", element("button", { onclick: copy }, t("copy"))),
    element("p", { class: "piying-long" }, text),
  );
}

const formatValue = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

const table = (rows) => element(
  "table", {}, ...rows.map(([name, value]) => (
    element("tr", {}, element("th", {}, name), element("td", {}, String(value)))
  )),
);
