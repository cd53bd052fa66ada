// Graph queries: a node's widget values and the sources of its links, without running anything.
import { app } from "../../../scripts/app.js";

/** @import { ComfyNode, Graph, Question, Widget } from "./types" */

export const LOADER = "loader", SAMPLER = "sampler", TEXT = "text", BARE = "bare", FRAMES = "frames";

// Whether a node of this role has a memory plan.
/** @param {string} role */
export const isPlanned = (role) => role === SAMPLER || role === FRAMES;

const SUBGRAPH_INPUT = -10;
const MUTED = 2, BYPASSED = 4;
const MAX_TEXT = 200; // characters; longer texts are prompts, which no plan depends on
const MAX_DEPTH = 24; // nodes in a row

export const root = () => app.rootGraph ?? app.graph;

// What a node of the pack is, read from its sockets, so that no model family has to be listed here; else null.
/** @param {ComfyNode} node @returns {string | null} */
export function roleOf(node) {
  if (/^PiyingLoad/.test(node.comfyClass ?? "")) return LOADER;
  if (!/^Piying/.test(node.comfyClass ?? "")) return null;
  if (/^Piying(Upscale|Interpolate)/.test(node.comfyClass ?? "")) return FRAMES;
  const types = (node.outputs ?? []).map((output) => output.type);
  const hasModelSocket = node.inputs?.some((input) => input.name === "model" && !input.widget);
  if (hasModelSocket && types.some((type) => type === "IMAGE" || type === "VIDEO")) return SAMPLER;
  return types.includes("STRING") ? TEXT : null;
}

/** @param {Graph} graph @param {number} id */
const linkOf = (graph, id) => graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id];

// The node that represents a subgraph in its parent graph.
/** @param {Graph | undefined} inner @param {Graph} [graph] @returns {ComfyNode | null} */
export function outerNode(inner, graph = root()) {
  for (const node of graph._nodes ?? []) {
    if (node.subgraph === inner) return node;
    const found = node.subgraph && outerNode(inner, node.subgraph);
    if (found) return found;
  }
  return null;
}

/** @param {any} value */
const isPlain = (value) => ["number", "boolean"].includes(typeof value)
  || (typeof value === "string" && value.length <= MAX_TEXT);

/** @param {Widget | undefined} widget */
const ofWidget = (widget) => (isPlain(widget?.value) ? { value: widget?.value } : null);

/** @typedef {{ value?: any, node?: ComfyNode, slot?: number } | null} Source */

// The source of a link: { value }, { node, slot }, or null where it is known only at run time.
/** @param {Graph} graph @param {number} id @param {number} depth @returns {Source} */
function follow(graph, id, depth) {
  const link = depth < MAX_DEPTH ? linkOf(graph, id) : null;
  if (!link) return null;
  if (Number(link.origin_id) === SUBGRAPH_INPUT) return followSubgraphInput(graph, link.origin_slot, depth);
  const node = graph.getNodeById(link.origin_id);
  if (!node || node.mode === MUTED) return null;
  if (node.mode === BYPASSED || node.type === "Reroute") return followBypassed(node, link.origin_slot, depth);
  if (/^Primitive/.test(node.type)) return ofWidget(node.widgets?.[0]);
  return { node, slot: link.origin_slot };
}

/** @param {Graph} graph @param {number} slot @param {number} depth @returns {Source} */
function followSubgraphInput(graph, slot, depth) {
  const outer = outerNode(graph);
  const input = outer?.inputs?.[slot];
  if (!input) return null;
  if (input.link != null) return follow(outer.graph, input.link, depth + 1);
  const widget = outer.widgets?.find((w) => w.name === input.name);
  return ofWidget(widget);
}

/** @param {ComfyNode} node @param {number} slot @param {number} depth @returns {Source} */
function followBypassed(node, slot, depth) {
  const type = node.outputs?.[slot]?.type;
  const input = node.inputs?.find((i) => i.link != null && (node.type === "Reroute" || i.type === type));
  return input?.link != null ? follow(node.graph, input.link, depth + 1) : null;
}

// What an input is called in the page's language.
/** @param {ComfyNode | undefined} node @param {string} name @returns {string} */
export function labelOf(node, name) {
  const input = node?.inputs?.find((one) => one.name === name);
  return input?.label ?? input?.localized_name ?? name;
}

// The body of the plan route: see nodes/widget_query.py.
/** @param {ComfyNode} node @param {number} [depth] @returns {Question} */
export function describe(node, depth = 0) {
  /** @type {Question} */
  const { inputs, wired } = { class_type: "", inputs: {}, wired: [] };
  for (const widget of node.widgets ?? []) if (isPlain(widget.value)) inputs[widget.name] = widget.value;
  for (const input of node.inputs ?? []) {
    if (input.link == null) continue;
    const found = follow(node.graph, input.link, depth);
    wired.push(input.name);
    if (found && "value" in found) inputs[input.name] = found.value;
    else if (found?.node && /^Piying/.test(found.node.comfyClass ?? "") && depth < 6) {
      inputs[input.name] = { ...describe(found.node, depth + 1), slot: found.slot };
    } else inputs[input.name] = null;
  }
  return { class_type: node.comfyClass ?? "", inputs, wired };
}

// The class of the loader at the end of a node's chain of `model` links; null where there is none.
/** @param {ComfyNode} node */
export function loaderOf(node) {
  let body = describe(node);
  while (typeof body.inputs.model === "object" && body.inputs.model) body = body.inputs.model;
  return /^PiyingLoad/.test(body.class_type) ? body.class_type : null;
}

// The nodes at an execution id, which is a path through subgraphs, the outermost first: "12:3".
/** @param {string | number} path @returns {ComfyNode[]} */
export function nodesAlong(path) {
  const nodes = [];
  let graph = root();
  for (const id of String(path).split(":")) {
    const node = graph?.getNodeById(Number(id)) ?? graph?.getNodeById(id);
    if (!node) return nodes;
    nodes.push(node);
    graph = node.subgraph;
  }
  return nodes;
}

/** @param {ComfyNode} node @param {string} name @param {any} value */
export function setWidget(node, name, value) {
  const widget = node.widgets?.find((w) => w.name === name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.setDirtyCanvas?.(true, true);
}

/** @param {ComfyNode} node @param {string} name */
export const isWired = (node, name) => node.inputs?.some((i) => i.name === name && i.link != null) ?? false;
