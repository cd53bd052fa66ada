// Reads what a node is set to and where its wires lead, without running anything.
import { app } from "../../../scripts/app.js";

export const SAMPLERS = new Set(["PiyingVACESample", "PiyingVACELongVideo", "PiyingHunyuanDiT"]);
export const LOADERS = new Set(["PiyingLoadWanVACE", "PiyingLoadHunyuanDiT", "PiyingLoadPromptModel"]);
export const TEXTS = new Set(["PiyingExpandPrompt", "PiyingMemoryPlan"]);

const SUBGRAPH_INPUT = -10;
const MUTED = 2, BYPASSED = 4;
const LONGEST = 200; // characters; prompts need not be sent
const DEEPEST = 24; // nodes behind each other

export const root = () => app.rootGraph ?? app.graph;

const linkOf = (graph, id) => graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id];

// The node that stands for a subgraph in the graph around it.
function outerNode(inner, graph = root()) {
  for (const node of graph._nodes ?? []) {
    if (node.subgraph === inner) return node;
    const found = node.subgraph && outerNode(inner, node.subgraph);
    if (found) return found;
  }
  return null;
}

const isPlain = (value) => ["number", "boolean"].includes(typeof value)
  || (typeof value === "string" && value.length <= LONGEST);

// What a wire brings: { value }, { node, slot }, or null where only the run will tell.
function follow(graph, id, depth) {
  const link = depth < DEEPEST ? linkOf(graph, id) : null;
  if (!link) return null;
  if (Number(link.origin_id) === SUBGRAPH_INPUT) return followOut(graph, link.origin_slot, depth);
  const node = graph.getNodeById(link.origin_id);
  if (!node || node.mode === MUTED) return null;
  if (node.mode === BYPASSED || node.type === "Reroute") return followThrough(node, link.origin_slot, depth);
  if (/^Primitive/.test(node.type)) return isPlain(node.widgets?.[0]?.value) ? { value: node.widgets[0].value } : null;
  return { node, slot: link.origin_slot };
}

function followOut(graph, slot, depth) {
  const outer = outerNode(graph);
  const input = outer?.inputs?.[slot];
  if (!input) return null;
  if (input.link != null) return follow(outer.graph, input.link, depth + 1);
  const widget = outer.widgets?.find((w) => w.name === input.name);
  return isPlain(widget?.value) ? { value: widget.value } : null;
}

function followThrough(node, slot, depth) {
  const type = node.outputs?.[slot]?.type;
  const input = node.inputs?.find((i) => i.link != null && (node.type === "Reroute" || i.type === type));
  return input ? follow(node.graph, input.link, depth + 1) : null;
}

// The question our server understands: see nodes/asked.py.
export function describe(node, depth = 0) {
  const inputs = {};
  for (const widget of node.widgets ?? []) if (isPlain(widget.value)) inputs[widget.name] = widget.value;
  for (const input of node.inputs ?? []) {
    if (input.link == null) continue;
    const found = follow(node.graph, input.link, depth);
    if (found && "value" in found) inputs[input.name] = found.value;
    else if (found && /^Piying/.test(found.node.comfyClass ?? "") && depth < 6) {
      inputs[input.name] = { ...describe(found.node, depth + 1), slot: found.slot };
    } else inputs[input.name] = null;
  }
  return { class_type: node.comfyClass, inputs };
}

// Nodes of the running graph are named by their path through subgraphs: "12:3".
export function nodeOf(path) {
  let graph = root(), node = null;
  for (const id of String(path).split(":")) {
    node = graph?.getNodeById(Number(id)) ?? graph?.getNodeById(id);
    graph = node?.subgraph;
  }
  return node;
}

export function setWidget(node, name, value) {
  const widget = node.widgets?.find((w) => w.name === name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.setDirtyCanvas?.(true, true);
}

export const isWired = (node, name) => node.inputs?.some((i) => i.name === name && i.link != null) ?? false;
