// Workflows saved by other versions: ComfyUI takes a node's values by position, the file also names them.
const KINDS = new Set(["INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"]);
const AFTER_RUN = new Set(["fixed", "increment", "decrement", "randomize", "increment-wrap"]);

// [name, default] of each widget that a definition gives, in ComfyUI's order.
function declared({ required = {}, optional = {} }) {
  return Object.entries({ ...required, ...optional })
    .filter(([, [kind, options]]) => !options?.forceInput && (Array.isArray(kind) || KINDS.has(kind)))
    .map(([name, [kind, options]]) => [name, options?.default ?? (Array.isArray(kind) ? kind[0] : "")]);
}

// The values of a file by name; what becomes of a seed after a run follows the seed, and has no name there.
function stored(names, values) {
  const found = new Map(), controls = new Map(), left = [...values];
  for (const name of names) {
    if (!left.length) return null;
    found.set(name, left.shift());
    if (name === "seed" && AFTER_RUN.has(left[0])) controls.set(name, left.shift());
  }
  return left.length ? null : { found, controls };
}

// The values of a stored node in the order of its class as it is now; null where they are in it already.
export function inOrder(node, definition) {
  const names = (node.inputs ?? []).filter((input) => input.widget).map((input) => input.widget.name);
  const now = declared(definition);
  if (!Array.isArray(node.widgets_values) || names.every((name, place) => name === now[place]?.[0])) return null;
  const file = stored(names, node.widgets_values);
  if (!file) return null;
  return now.flatMap(([name, usual]) => [
    file.found.has(name) ? file.found.get(name) : usual,
    ...(name === "seed" ? [file.controls.get(name) ?? "fixed"] : []),
  ]);
}

export function matchByName(graph, definitionOf) {
  const graphs = [graph, ...(graph?.definitions?.subgraphs ?? [])];
  for (const node of graphs.flatMap((g) => g?.nodes ?? [])) {
    const definition = /^Piying/.test(node.type) ? definitionOf(node.type) : null;
    const values = definition ? inOrder(node, definition) : null;
    if (values) node.widgets_values = values;
  }
}
