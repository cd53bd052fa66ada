// The panel at the foot of our nodes: an element, and how tall it wants to be.
import { LOADERS, SAMPLERS, TEXTS, isWired, setWidget } from "./graph.js";
import { element } from "./dom.js";
import { openModels } from "./models.js";
import { showPlan, showRecord } from "./details.js";
import { say, time } from "./words.js";

export const panels = new Map(); // node → panel

const LINE = 20, BUTTONS = 30, BAR = 26, MOTION = 150, TEXT = 96, EDGE = 10;

export function addPanel(node) {
  const box = element("div", { class: "piying-panel" });
  const panel = { node, box, plan: null, problem: null, running: null, motion: null, record: null, text: null };
  const height = () => wanted(panel);
  const widget = node.addDOMWidget("piying", "piying", box, {
    serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false; // never among a workflow's values
  panels.set(node, panel);
  const removed = node.onRemoved;
  node.onRemoved = function (...rest) {
    panels.delete(node);
    return removed?.apply(this, rest);
  };
  const executed = node.onExecuted;
  node.onExecuted = function (output, ...rest) {
    take(panel, output);
    return executed?.call(this, output, ...rest);
  };
  render(panel);
}

export function take(panel, output) {
  panel.output = output;
  panel.record = output?.piying?.[0] ?? panel.record;
  if (TEXTS.has(panel.node.comfyClass)) panel.text = output?.text?.[0] ?? panel.text;
  render(panel);
}

// A ComfyUI that shows text while it grows keeps it on the node afterwards.
const ownText = ({ node, text }) => text && !node.widgets?.some((w) => w.name === "$$node-text-preview");

function wanted(panel) {
  const { node } = panel;
  let height = EDGE;
  if (SAMPLERS.has(node.comfyClass)) height += 2 * LINE + BUTTONS;
  if (LOADERS.has(node.comfyClass)) height += BUTTONS;
  if (panel.running) height += BAR;
  if (panel.motion) height += MOTION;
  if (ownText(panel)) height += TEXT;
  if (panel.record && !SAMPLERS.has(node.comfyClass)) height += BUTTONS;
  return height > EDGE ? height : 0;
}

export function render(panel) {
  const { node, box } = panel;
  const name = node.comfyClass;
  const parts = [];
  if (SAMPLERS.has(name)) parts.push(...samplerParts(panel));
  if (LOADERS.has(name)) parts.push(element("div", { class: "piying-row" }, modelsButton(panel, "models")));
  if (ownText(panel)) {
    parts.push(element("div", { class: "piying-text", onwheel: (e) => e.stopPropagation() }, panel.text));
  }
  if (panel.record && !SAMPLERS.has(name)) parts.push(element("div", { class: "piying-row" }, recordButton(panel)));
  if (panel.running) parts.push(bar(panel.running));
  if (panel.motion) parts.push(element("img", { class: "piying-motion", src: panel.motion, alt: "" }));
  box.replaceChildren(...parts);
  grow(panel);
}

// A node grows for what it shows, and has its own height back when that is gone. A height other than the one set here
// comes from a file or a person: it is the node's own.
function grow(panel) {
  const { node } = panel;
  if (panel.height !== node.size[1]) panel.own = node.size[1];
  panel.height = Math.max(panel.own, node.computeSize?.()[1] ?? 0);
  if (panel.height !== node.size[1]) node.setSize([node.size[0], panel.height]);
  node.setDirtyCanvas?.(true, true);
}

function samplerParts(panel) {
  const { plan, problem } = panel;
  const verdict = plan?.verdict ?? (problem ? "unknown" : "asking");
  const sentence = problem ?? (verdict === "wrong" ? plan.error : null);
  return [
    element(
      "div",
      {
        class: sentence ? "piying-line piying-sentence" : "piying-line",
        title: plan?.reasons?.join("\n") ?? plan?.error ?? problem ?? undefined,
      },
      element("span", { class: "piying-verdict", "data-verdict": verdict }, problem ? "?" : say(verdict)),
      element("span", {}, sentence ?? figures(plan)),
    ),
    sentence ? null : element("div", { class: "piying-small" }, smallPrint(panel)),
    element(
      "div", { class: "piying-row" },
      plan?.text ? element("button", { onclick: () => showPlan(plan) }, say("plan")) : null,
      panel.record ? recordButton(panel) : null,
      sizes(panel),
      plan?.toy || plan?.verdict === "missing" ? modelsButton(panel, "get") : null,
    ),
  ].filter(Boolean);
}

function figures(plan) {
  if (!plan) return "";
  if (plan.verdict === "missing") return plan.model;
  const [kind, peak, all] = plan.verdict === "cpu"
    ? ["memory", plan.peak_ram_gb, plan.machine.ram_gb]
    : ["card", plan.peak_vram_gb, plan.machine.vram_gb];
  const parts = [say(kind, { peak: peak.toFixed(1), all: all.toFixed(1) })];
  // A toy takes as long as its overhead, which no plan knows.
  if (!plan.toy) parts.push(say("about", { time: time(plan.seconds) }));
  return parts.join(" · ");
}

function smallPrint({ plan, record }) {
  if (plan?.verdict === "missing") return say("fetchable", { button: say("get") });
  const parts = [];
  if (plan?.model) parts.push(plan.toy ? say("toy") : plan.model);
  if (record?.seconds) {
    const sum = Object.values(record.seconds).reduce((a, b) => a + b, 0);
    parts.push(say("took", { time: time(sum) }));
    if (record.peak_vram_gb) parts.push(say("peak", { gb: record.peak_vram_gb }));
  } else if (plan?.unknown?.length) parts.push(say("unknown", { names: plan.unknown.join(", ") }));
  return parts.join(" · ");
}

function sizes({ node, plan }) {
  if (!plan?.sizes || isWired(node, "width") || isWired(node, "height")) return null;
  const choose = (event) => {
    const [width, height] = event.target.value.split("×").map(Number);
    setWidget(node, "width", width);
    setWidget(node, "height", height);
    event.target.selectedIndex = 0;
  };
  const options = plan.sizes.map(([w, h]) => element("option", {}, `${w}×${h}`));
  return element("select", { onchange: choose }, element("option", {}, say("size")), ...options);
}

const recordButton = (panel) => element("button", { onclick: () => showRecord(panel.record) }, say("record"));

// A sampler asks for the models of its loader.
function modelsButton({ node, plan }, key) {
  const loader = LOADERS.has(node.comfyClass) ? node.comfyClass
    : node.comfyClass === "PiyingHunyuanDiT" ? "PiyingLoadHunyuanDiT" : "PiyingLoadWanVACE";
  return element("button", { onclick: () => openModels(loader, plan?.offer) }, say(key));
}

function bar({ phase, done, total, seconds_left: left }) {
  const parts = [`${say(phase)} ${done}/${total}`, left === null ? null : say("left", { time: time(left) })];
  const share = total ? (100 * done) / total : 0;
  return element(
    "div", { class: "piying-bar" },
    element("i", { style: `width: ${share.toFixed(1)}%` }), element("span", {}, parts.filter(Boolean).join(" · ")),
  );
}
