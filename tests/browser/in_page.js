// Helpers that run inside the ComfyUI page, installed as window.drive once the app is up.
(() => {
  const EVENTS = [
    "execution_start", "execution_cached", "executing", "progress", "progress_state", "executed",
    "execution_success", "execution_error", "execution_interrupted",
  ];
  const FINAL = ["execution_success", "execution_error", "execution_interrupted"];
  const events = [];
  const aliases = new Map();

  const graph = () => window.app.rootGraph ?? window.app.graph;
  const nodes = () => graph()._nodes;
  // With those in subgraphs.
  const allNodes = (list = nodes()) => list.flatMap((node) => [node, ...(node.subgraph ? allNodes(node.subgraph._nodes) : [])]);

  const listen = () => {
    for (const type of EVENTS) {
      window.app.api.addEventListener(type, (event) => events.push({ type, detail: event.detail }));
    }
  };

  // A node is named by the alias of its add_node, or by id, title or class.
  const find = (ref) => {
    const known = aliases.get(ref);
    const node = (known !== undefined && graph().getNodeById(known))
      || nodes().find((n) => String(n.id) === String(ref))
      || nodes().find((n) => n.title === ref)
      || nodes().find((n) => n.comfyClass === ref || n.type === ref);
    if (!node) throw new Error(`no node ${ref} in the graph`);
    return node;
  };

  const slot = (slots, ref, what) => {
    const index = typeof ref === "number" ? ref : slots.findIndex((s) => s.name === ref || s.type === ref);
    if (index < 0) throw new Error(`no ${what} ${ref}; there are: ${slots.map((s) => s.name).join(", ")}`);
    return index;
  };

  const setWidget = (ref, name, value) => {
    const node = find(ref);
    const widget = node.widgets?.find((w) => w.name === name);
    const names = (node.widgets ?? []).map((w) => w.name).join(", ");
    if (!widget) throw new Error(`${node.type} has no widget ${name}; there are: ${names}`);
    widget.value = value;
    widget.callback?.(value, window.app.canvas, node);
  };

  const addNode = (spec) => {
    const node = window.LiteGraph.createNode(spec.class);
    if (!node) throw new Error(`the frontend knows no node ${spec.class}`);
    graph().add(node);
    if (spec.title) node.title = spec.title;
    if (spec.pos) node.pos = spec.pos;
    aliases.set(spec.id ?? spec.title ?? spec.class, node.id);
    for (const [name, value] of Object.entries(spec.widgets ?? {})) setWidget(node.id, name, value);
    if (spec.color) node.color = spec.color;
    if (spec.bgcolor) node.bgcolor = spec.bgcolor;
    // Setting widgets may grow the node, so its size comes last.
    if (spec.size) node.setSize(spec.size);
    return node.id;
  };

  const link = ({ from, output, to, input }) => {
    const [source, target] = [find(from), find(to)];
    const made = source.connect(slot(source.outputs, output ?? 0, "output"), target, slot(target.inputs, input, "input"));
    if (!made) throw new Error(`${from}.${output} does not fit ${to}.${input}`);
  };

  const addGroup = ({ title, bounding, color }) => {
    const group = new window.LiteGraph.LGraphGroup(title);
    group.configure({ id: -1, title, bounding, color: color ?? "#3f789e", font_size: 24, flags: {} });
    graph().add(group);
  };

  const clear = () => {
    aliases.clear();
    graph().clear();
    graph().id = crypto.randomUUID();
  };

  const mediaOf = (node) => [...(node.imgs ?? [])].map((e) => ({
    kind: e.tagName.toLowerCase(), src: e.src, width: e.naturalWidth ?? e.videoWidth, loaded: e.complete ?? true,
  }));

  // In Nodes 2.0 beside the widgets, in the node's own element.
  const videoOf = (node) => [...(node.widgets ?? []).map((w) => w.element), document.querySelector(`[data-node-id="${node.id}"]`)]
    .flatMap((e) => [...(e?.querySelectorAll("video") ?? [])])
    .map((e) => ({ kind: "video", src: e.src, width: e.videoWidth, loaded: e.readyState > 0, inDom: e.isConnected }));

  const dropFile = ({ name, type, base64 }) => {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], name, { type }));
    const where = { bubbles: true, cancelable: true, clientX: 400, clientY: 400, dataTransfer };
    const canvas = window.app.canvas.canvas;
    for (const kind of ["dragenter", "dragover", "drop"]) canvas.dispatchEvent(new DragEvent(kind, where));
  };

  const select = (ref) => {
    const node = find(ref);
    window.app.canvas.deselectAll?.();
    window.app.canvas.selectNode(node);
    window.app.canvas.centerOnNode?.(node);
    window.app.canvas.setDirty(true, true);
  };

  window.drive = {
    events, listen, find, select, setWidget, addNode, link, addGroup, clear, dropFile,
    serialize: () => graph().serialize(),
    count: () => nodes().length,
    ofClass: (pattern) => allNodes().filter((n) => pattern.test(n.type)),
    finished: () => events.filter((e) => FINAL.includes(e.type)),
    media: (ref) => { const node = find(ref); return [...mediaOf(node), ...videoOf(node)]; },
    unknownTypes: () => nodes().map((n) => n.type).filter((t) => !(t in window.LiteGraph.registered_node_types)),
  };
})();
