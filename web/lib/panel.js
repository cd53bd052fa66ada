// The panel at the foot of a node: its parts, and the height they need.
import { BARE, LOADER, TEXT, isPlanned, isWired, labelOf, loaderOf, setWidget } from "./graph.js";
import { element } from "./dom.js";
import { openModels } from "./models_dialog.js";
import { planParts, showPlan, showRecord } from "./dialogs.js";
import { inPageLanguage, t, time } from "./i18n.js";
import { Viewer } from "./viewer.js";
import { isAdvanced } from "./widgets.js";

/** @import { ComfyNode, Output, Panel, Plan, Progress, RunRecord, Sheets } from "./types" */

export const panels = new Map(); // by node

// Heights and widths in pixels.
const LINE = 20, BUTTON_ROW = 30, BAR = 26, MOTION = 150, LOOK = 180, TEXT_BOX = 140, PLAN_LINE = 15, MAX_PLAN = 420, PLAN_WIDTH = 640, EDGE = 10;
const SENTENCE_LINE = 14, LETTER = 5.7, WIDE_LETTER = 11.2, BESIDE = 90, RAGGED = 1.12;

// What a sampler's panel and the one on the subgraph around it both show.
/** @type {("plan" | "problem" | "running" | "motion" | "record" | "sheets")[]} */
const SHARED = ["plan", "problem", "running", "motion", "record", "sheets"];

// On a subgraph: with the panel of the one sampler that is in it, whose plan and progress it shows.
/** @param {ComfyNode} node @param {string} role @param {Panel | null} [inner] */
export function addPanel(node, role, inner = null) {
  const box = element("div", { class: "piying-panel" });
  /** @type {Panel} */
  const panel = {
    node, role, box, inner, own: node.size[1], plan: null, problem: null, failure: null, running: null, motion: null,
    record: null, text: null, sheets: null, viewer: null,
  };
  if (inner) {
    inner.outer = panel;
    for (const name of SHARED) {
      Object.defineProperty(panel, name, { get: () => inner[name], set: (value) => { Object.assign(inner, { [name]: value }); } });
    }
  }
  const height = () => neededHeight(panel);
  const widget = node.addDOMWidget("piying", "piying", box, {
    serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false; // keeps the panel out of widgets_values
  // A size of its own, not one to be stretched: what a node has beyond it is for the prompts.
  widget.computeSize = () => [0, height()];
  widget.computeLayoutSize = undefined;
  panels.set(node, panel);
  const removed = node.onRemoved;
  node.onRemoved = function (...rest) {
    panels.delete(node);
    if (inner) inner.outer = null;
    return removed?.apply(this, rest);
  };
  const executed = node.onExecuted;
  node.onExecuted = function (output, ...rest) {
    setOutput(panel, output);
    return executed?.call(this, output, ...rest);
  };
  render(panel);
  return panel;
}

// A node without a panel gets one where its run has something to say or show, such as a mask over its video.
/** @param {ComfyNode} node */
export function watchNotes(node) {
  const executed = node.onExecuted;
  node.onExecuted = function (output, ...rest) {
    if ((output?.piying?.[0]?.note || output?.piying_frames) && !panels.has(node)) setOutput(addPanel(node, BARE), output);
    return executed?.call(this, output, ...rest);
  };
}

/** @param {ComfyNode} node @param {string} sentence */
export function showFailure(node, sentence) {
  const panel = panels.get(node) ?? addPanel(node, BARE);
  panel.failure = sentence;
  panel.running = panel.motion = null;
  render(panel);
}

export function clearFailures() {
  for (const panel of panels.values()) {
    if (panel.failure === null) continue;
    panel.failure = null;
    render(panel);
  }
}

/** @param {Panel} panel @param {Output} output */
export function setOutput(panel, output) {
  panel.output = output;
  panel.record = output?.piying?.[0] ?? panel.record;
  panel.sheets = output?.piying_frames?.[0] ?? panel.sheets;
  if (panel.role === TEXT) panel.text = output?.text?.[0] ?? panel.text;
  const { size } = panel.node;
  if (isPlan(panel) && panel.text && size[0] < PLAN_WIDTH) panel.node.setSize([PLAN_WIDTH, size[1]]);
  render(panel);
}

// Newer versions of ComfyUI stream text into a preview widget of their own.
/** @param {Panel} given */
const ownText = ({ node, text }) => Boolean(text) && !node.widgets?.some((w) => w.name === "$$node-text-preview");

// Some of them take it away again at the end of a run.
export function restoreTexts() {
  for (const panel of panels.values()) {
    if (ownText(panel) !== Boolean(panel.box.querySelector(".piying-text"))) render(panel);
  }
}

// A table, whose columns stand below each other and whose lines are not broken.
/** @param {Panel} given */
const isPlan = ({ node }) => node.comfyClass === "PiyingMemoryPlan";

/** @param {Panel} panel */
const textHeight = (panel) => (
  isPlan(panel) ? Math.min(MAX_PLAN, (panel.text ?? "").split("\n").length * PLAN_LINE + 2 * EDGE) : TEXT_BOX
);

// Why an expanded prompt is the line itself: the facts that the model lost, else the reason in full.
/** @param {RunRecord | null} record */
function fallbackNote(record) {
  if (!record?.problem) return null;
  return record.missing?.length ? t("notKept", { facts: record.missing.join(", ") }) : t("yourLine", { problem: inPageLanguage(record.problem) });
}

// What is wrong with the values of a sampler, as its plan says before a run.
/** @param {Panel} given */
const refusalOf = ({ plan, problem }) => problem ?? (plan?.verdict === "wrong" ? plan.error : null);

// The refusal of a run is often the one that the plan has told already.
/** @param {Panel} panel */
const ownFailure = (panel) => (panel.failure === inPageLanguage(refusalOf(panel) ?? "") ? null : panel.failure);

// What the model was not trained for, and the time that it takes to see that.
/** @param {Panel} given */
const cautionOf = ({ plan }) => inPageLanguage(plan?.caution ?? "");

/** @param {Panel} given @param {string} sentence */
function sentenceHeight({ node }, sentence) {
  const wide = sentence.match(/[\u2e80-\uffff]/g)?.length ?? 0;
  const length = wide * WIDE_LETTER + (sentence.length - wide) * LETTER;
  return Math.max(LINE, Math.ceil((length * RAGGED) / Math.max(80, node.size[0] - BESIDE)) * SENTENCE_LINE + 2);
}

// The frames of the last run, but for the time of the next.
/** @param {Panel} given */
const isLooked = ({ sheets, running, motion }) => Boolean(sheets && !running && !motion);

// It keeps its place while the panel around it is drawn again.
/** @param {Panel} panel */
function viewerOf(panel) {
  if (panel.viewer?.sheets !== panel.sheets) panel.viewer = new Viewer(/** @type {Sheets} */ (panel.sheets));
  return panel.viewer;
}

/** @param {Panel} panel */
function neededHeight(panel) {
  const { role } = panel;
  let height = EDGE;
  const refusal = isPlanned(role) ? refusalOf(panel) : null;
  if (isPlanned(role)) height += BUTTON_ROW * (offeredChanges(panel).length ? 2 : 1);
  if (refusal) height += sentenceHeight(panel, inPageLanguage(refusal));
  else if (isPlanned(role)) {
    height += 2 * LINE;
    if (cautionOf(panel)) height += sentenceHeight(panel, cautionOf(panel)) + 2;
  }
  if (ownFailure(panel)) height += sentenceHeight(panel, panel.failure ?? "") + 4;
  if (role === LOADER) height += BUTTON_ROW;
  if (panel.running) height += BAR;
  if (panel.motion) height += MOTION;
  if (isLooked(panel)) height += LOOK;
  if (ownText(panel)) height += textHeight(panel);
  if (panel.record?.note) height += sentenceHeight(panel, inPageLanguage(panel.record.note)) + 4;
  if (fallbackNote(panel.record)) height += LINE;
  if (hasDetails(panel)) height += BUTTON_ROW;
  return height > EDGE ? height : 0;
}

/** @param {Panel} panel */
export function render(panel) {
  const parts = [];
  const failure = ownFailure(panel);
  if (failure) parts.push(sentenceLine("wrong", t("failed"), failure));
  if (isPlanned(panel.role)) parts.push(...samplerParts(panel));
  if (panel.role === LOADER) parts.push(element("div", { class: "piying-row" }, modelsButton(panel, "models")));
  if (ownText(panel)) {
    const box = { class: isPlan(panel) ? "piying-text piying-plan" : "piying-text", onwheel: (/** @type {Event} */ event) => event.stopPropagation() };
    parts.push(element("div", box, ...(isPlan(panel) ? planParts(panel.text ?? "") : [panel.text])));
  }
  if (panel.record?.note) parts.push(sentenceLine("caution", t("caution"), inPageLanguage(panel.record.note)));
  const note = fallbackNote(panel.record);
  if (note) parts.push(element("div", { class: "piying-small piying-note", title: inPageLanguage(panel.record?.problem) }, note));
  if (hasDetails(panel)) parts.push(element("div", { class: "piying-row" }, recordButton(panel)));
  if (panel.running) parts.push(progressBar(panel.running));
  if (panel.motion) parts.push(element("img", { class: "piying-motion", src: panel.motion, alt: "" }));
  if (isLooked(panel)) parts.push(viewerOf(panel).box);
  panel.box.replaceChildren(...parts);
  fitHeight(panel);
  if (panel.outer) render(panel.outer);
}

// A node grows with its panel and shrinks back to its own height. A height other than the one set here comes from a file
// or a person, and becomes the node's own. In Nodes 2.0 the page itself makes room for what is in a node.
/** @param {Panel} panel */
function fitHeight(panel) {
  const { node } = panel;
  if (panel.height !== node.size[1]) panel.own = node.size[1];
  panel.height = Math.max(panel.own, window.LiteGraph.vueNodesMode ? 0 : (node.computeSize?.()[1] ?? 0));
  if (panel.height !== node.size[1]) node.setSize([node.size[0], panel.height]);
  node.setDirtyCanvas?.(true, true);
}

/** @param {string} verdict @param {string} word @param {string} sentence */
function sentenceLine(verdict, word, sentence) {
  return element(
    "div", { class: "piying-line piying-sentence", title: sentence },
    element("span", { class: "piying-verdict", "data-verdict": verdict }, word), element("span", {}, sentence),
  );
}

/** @param {Panel} panel */
function samplerParts(panel) {
  const { plan, problem } = panel;
  const verdict = plan?.verdict ?? (problem ? "unknown" : "pending");
  const word = problem ? "?" : t(verdict);
  const refusal = refusalOf(panel);
  const buttons = element(
    "div", { class: "piying-row" },
    plan?.text ? element("button", { onclick: () => showPlan(plan) }, t("plan")) : null,
    panel.record ? recordButton(panel) : null,
    sizeSelect(panel),
    plan?.toy || plan?.verdict === "missing" ? modelsButton(panel, "get") : null,
    advancedButton(panel),
  );
  const offers = offeredChanges(panel);
  const offerRow = offers.length ? element("div", { class: "piying-row" }, ...offers) : "";
  if (refusal) return [sentenceLine(verdict, word, inPageLanguage(refusal)), offerRow, buttons];
  return [
    element(
      // A narrow node cuts the figures off.
      "div", { class: "piying-line", title: [figures(panel), inPageLanguage(plan?.reasons?.join("\n") ?? plan?.error ?? "")].filter(Boolean).join("\n") },
      element("span", { class: "piying-verdict", "data-verdict": verdict }, word),
      element("span", {}, figures(panel)),
    ),
    element(
      "div", { class: "piying-line" },
      plan?.toy ? element("span", { class: "piying-verdict", "data-verdict": "toy" }, t("toy")) : null,
      element("span", { class: "piying-small", title: details(panel) }, details(panel)),
    ),
    cautionOf(panel) ? sentenceLine("caution", t("caution"), cautionOf(panel)) : "",
    offerRow,
    buttons,
  ];
}

// The sampler's own: a subgraph may call them otherwise.
/** @param {Panel} given @param {string} name */
const ownLabel = ({ node, inner }, name) => labelOf(inner?.node ?? node, name);

/** @param {Panel} panel @param {string[]} names */
const labels = (panel, names) => names.map((name) => ownLabel(panel, name)).join(", ");

/** @param {Panel} panel */
function figures(panel) {
  const { plan } = panel;
  if (!plan) return "";
  if (plan.verdict === "missing") return plan.model;
  if (plan.verdict === "unknown") return t("known", { names: labels(panel, plan.unknown) });
  const [kind, peak, all] = plan.machine.vram_gb
    ? ["card", plan.peak_vram_gb, plan.machine.vram_gb]
    : ["memory", plan.peak_ram_gb, plan.machine.ram_gb];
  const parts = [t(kind, { peak: peak.toFixed(1), all: all.toFixed(1) })];
  if (plan.verdict !== "too big") parts.push(plan.seconds === null ? t("moments") : t("about", { time: time(plan.seconds) }));
  return parts.join(" · ");
}

/** @param {Panel} panel */
function details(panel) {
  const { plan, record } = panel;
  if (plan?.verdict === "missing") return t("fetchable", { button: t("get") });
  const parts = [];
  // What the model can do: the node has sockets for all that some model can.
  if (plan?.reads) parts.push(t("reads", { words: inPageLanguage(plan.reads) }));
  if (record?.seconds) {
    const sum = Object.values(record.seconds).reduce((a, b) => a + b, 0);
    parts.push(t("took", { time: time(sum) }));
    if (record.peak_vram_gb) parts.push(t("peak", { gb: record.peak_vram_gb }));
  } else if (plan?.unknown?.length && plan.verdict !== "unknown") parts.push(t("assumed", { names: labels(panel, plan.unknown) }));
  if (plan?.model && !plan.toy) parts.push(plan.model);
  const sized = Object.entries(plan?.from_task ?? {}).map(([name, value]) => `${ownLabel(panel, name)} ${value ?? ""}`.trim());
  if (sized.length) parts.push(t("fromTask", { names: sized.join(", ") }));
  return parts.join(" · ");
}

// [name, value, node] of what would be changed, where it is not wired: a wired or a task's size is not the widget's to
// set. A subgraph has some widgets of its sampler on its face, and the others within.
/** @param {Panel} given @param {Record<string, any> | undefined} values @returns {[string, any, ComfyNode][]} */
function changesTo({ node, inner, plan }, values) {
  /** @type {[string, any, ComfyNode][]} */
  const changes = [];
  for (const [name, value] of Object.entries(values ?? {})) {
    for (const one of inner ? [node, inner.node] : [node]) {
      const widget = one.widgets?.find((each) => each.name === name);
      if (!widget || isWired(one, name)) continue;
      if (widget.value !== value && !(name in (plan?.from_task ?? {}))) changes.push([name, value, one]);
      break;
    }
  }
  return changes;
}

/** @param {[string, any, ComfyNode][]} changes */
const apply = (changes) => changes.forEach(([name, value, node]) => setWidget(node, name, value));

/** @param {Panel} panel */
const offeredChanges = (panel) => (
  [trainedButton(panel), ...(panel.plan?.fitting ?? []).map((one) => fittingButton(panel, one))].filter(Boolean)
);

/** @param {Panel} panel */
function trainedButton(panel) {
  const changes = changesTo(panel, panel.plan?.settings);
  if (!changes.length) return null;
  const told = changes.map(([name, value, node]) => `${labelOf(node, name)} ${value}`).join(", ");
  return element("button", { class: "piying-trained", title: told, onclick: () => apply(changes) }, t("trained"));
}

/** @param {Panel} given */
function sizeSelect({ node, plan }) {
  if (!plan?.sizes?.length || !node.widgets?.some((widget) => widget.name === "width") || isWired(node, "width") || isWired(node, "height")) return null;
  const choose = (/** @type {any} */ event) => {
    const [width, height] = event.target.value.split("×").map(Number);
    setWidget(node, "width", width);
    setWidget(node, "height", height);
    event.target.selectedIndex = 0;
  };
  const options = plan.sizes.map(([w, h]) => element("option", {}, `${w}×${h}`));
  return element("select", { onchange: choose }, element("option", {}, t("size")), ...options);
}

// Sets what would fit in place of what does not.
/** @param {Panel} panel @param {Record<string, any>} values */
function fittingButton(panel, values) {
  const changes = changesTo(panel, values);
  const { width, height, num_frames: frames } = Object.fromEntries(changes);
  const label = width || height ? `${values.width}×${values.height}` : t("frames", { count: frames });
  const attributes = { class: "piying-fitting", onclick: () => apply(changes) };
  return changes.length ? element("button", attributes, t("use", { label })) : null;
}

// Rarely used widgets: frontends before Nodes 2.0 show them by the node's menu alone.
/** @param {Panel} panel */
function advancedButton(panel) {
  const { node } = panel;
  if (!node.toggleAdvanced || window.LiteGraph.vueNodesMode || !node.widgets?.some(isAdvanced)) return null;
  const toggle = () => {
    node.toggleAdvanced?.();
    render(panel);
  };
  return element("button", { onclick: toggle }, t(node.showAdvanced ? "less" : "more"));
}

// A sampler has them in its row of buttons.
/** @param {Panel} given */
const hasDetails = ({ role, record }) => !isPlanned(role) && Boolean(role === BARE ? record?.note : record);

/** @param {Panel} panel */
const recordButton = (panel) => element("button", { onclick: () => showRecord(panel.record ?? {}) }, t("record"));

// A sampler lists the models of its loader.
/** @param {Panel} given @param {string} key */
function modelsButton({ node, inner, plan }, key) {
  return element("button", { onclick: () => openModels(loaderOf(inner?.node ?? node), plan?.offer) }, t(key));
}

/** @param {Progress} given */
function progressBar({ phase, done, total, seconds_left: left }) {
  const parts = [`${t(phase)} ${done}/${total}`, left === null ? null : t("left", { time: time(left) })];
  const share = total ? (100 * done) / total : 0;
  return element(
    "div", { class: "piying-bar" },
    element("i", { style: `width: ${share.toFixed(1)}%` }), element("span", {}, parts.filter(Boolean).join(" · ")),
  );
}
