// What does not fit on a node: the whole plan, and how something was made.
import { dialog, element } from "./dom.js";
import { say } from "./words.js";

export function showPlan(plan) {
  dialog(say("title.plan"), say("close"), element("pre", {}, plan.text));
}

const LONG = new Set(["prompt", "negative_prompt", "expanded", "frozen_prompt"]);

export function showRecord(record) {
  const rows = Object.entries(record).filter(([, value]) => value !== null && value !== "");
  const short = rows.filter(([name]) => !LONG.has(name) && name !== "seconds");
  const texts = rows.filter(([name]) => LONG.has(name)).map(([name, value]) => textPart(name, value));
  dialog(
    say("title.record"), say("close"), ...texts,
    record.seconds ? element("h4", {}, say("phases")) : null,
    record.seconds ? table(Object.entries(record.seconds)) : null,
    table(short.map(([name, value]) => [name, plain(value)])),
  );
}

function textPart(name, text) {
  const copy = () => navigator.clipboard?.writeText(text);
  return element(
    "section", {},
    element("h4", {}, name, " ", element("button", { onclick: copy }, say("copy"))),
    element("p", { class: "piying-long" }, text),
  );
}

const plain = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

const table = (rows) => element(
  "table", {}, ...rows.map(([name, value]) => element("tr", {}, element("th", {}, name), element("td", {}, String(value)))),
);
