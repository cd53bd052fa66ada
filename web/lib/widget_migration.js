// Widget migration for workflows of other versions: ComfyUI reads widget values by position, the file also has names.

/** @import { Definition, Slot } from "./types" */
const WIDGET_TYPES = new Set(["INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"]);
const CONTROL_AFTER_GENERATE = new Set(["fixed", "increment", "decrement", "randomize", "increment-wrap"]);

// [name, default] of each widget of a definition, in ComfyUI's order.
/** @param {Definition} given @returns {[string, any][]} */
function declaredWidgets({ required = {}, optional = {} }) {
  return Object.entries({ ...required, ...optional })
    .filter(([, [type, options]]) => !options?.forceInput && (Array.isArray(type) || WIDGET_TYPES.has(type)))
    .map(([name, [type, options]]) => [name, options?.default ?? (Array.isArray(type) ? type[0] : "")]);
}

// The values of a file by name, null where their number does not match. A seed is followed by its
// control_after_generate, which has no name in the file.
/** @param {string[]} names @param {any[]} values */
function storedValues(names, values) {
  const found = new Map(), controls = new Map(), left = [...values];
  for (const name of names) {
    if (!left.length) return null;
    found.set(name, left.shift());
    if (name === "seed" && CONTROL_AFTER_GENERATE.has(left[0])) controls.set(name, left.shift());
  }
  return left.length ? null : { found, controls };
}

// The values of a stored node in the order of its current class; null where nothing has to change.
/** @param {any} node @param {Definition} definition */
export function reorderedValues(node, definition) {
  const names = (node.inputs ?? []).flatMap((/** @type {Slot} */ input) => input.widget?.name ?? []);
  const widgets = declaredWidgets(definition);
  if (!Array.isArray(node.widgets_values) || names.every((/** @type {string} */ name, /** @type {number} */ index) => name === widgets[index]?.[0])) return null;
  const stored = storedValues(names, node.widgets_values);
  if (!stored) return null;
  return widgets.flatMap(([name, fallback]) => [
    stored.found.has(name) ? stored.found.get(name) : fallback,
    ...(name === "seed" ? [stored.controls.get(name) ?? "fixed"] : []),
  ]);
}

/** @param {any} graph @param {(type: string) => Definition | undefined} definitionOf */
export function migrateWidgets(graph, definitionOf) {
  const graphs = [graph, ...(graph?.definitions?.subgraphs ?? [])];
  for (const node of graphs.flatMap((g) => g?.nodes ?? [])) {
    const definition = /^Piying/.test(node.type) ? definitionOf(node.type) : null;
    const values = definition ? reorderedValues(node, definition) : null;
    if (values) node.widgets_values = values;
  }
}
