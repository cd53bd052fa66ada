// Widgets as a new node shows them: a large box for the prompt, and rare widgets out of sight until they are asked for.
import { isWired } from "./graph.js";

/** @import { ComfyNode, Definition, Widget } from "./types" */

const PROMPT_HEIGHT = 110, WIDGET_GAP = 4; // pixels

/** @param {Widget} widget */
export const isAdvanced = (widget) => Boolean(widget.options?.advanced);

/** @param {ComfyNode} node */
export function arrangeWidgets(node) {
  for (const widget of node.widgets ?? []) {
    if (widget.name === "prompt" && widget.element) widget.options.getMinHeight = () => PROMPT_HEIGHT;
    if (isAdvanced(widget) && !window.LiteGraph.vueNodesMode) hideUntilAsked(node, widget);
  }
  const smallest = node.computeSize?.();
  if (smallest) node.setSize([Math.max(node.size[0], smallest[0]), smallest[1]]);
}

// Frontends before Nodes 2.0 take the declaration into the options, look at the widget, and leave its room empty.
/** @param {ComfyNode} node @param {Widget} widget */
function hideUntilAsked(node, widget) {
  widget.advanced = true;
  widget.computeSize = () => [0, node.showAdvanced ? window.LiteGraph.NODE_WIDGET_HEIGHT : -WIDGET_GAP];
}

// What a file has set or wired stays in sight.
/** @param {ComfyNode} node @param {Definition | undefined} declared */
export function showUsed(node, declared) {
  const isUsed = (/** @type {Widget} */ widget) => isWired(node, widget.name) || widget.value !== defaultOf(declared, widget.name);
  if (node.widgets?.filter(isAdvanced).some(isUsed)) node.showAdvanced = true;
}

/** @param {Definition | undefined} declared @param {string} name */
export function defaultOf(declared, name) {
  const [kind, options] = declared?.required?.[name] ?? declared?.optional?.[name] ?? [];
  return options?.default ?? (Array.isArray(kind) ? kind[0] : options?.options?.[0]);
}
