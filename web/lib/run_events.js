// Events of a run: phase and time left, moving previews, run records.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { nodesAlong, root } from "./graph.js";
import { panels, render, setOutput } from "./panel.js";
import { invalidatePlans } from "./plan.js";

/** @import { Panel } from "./types" */

/** @param {string} path */
const panelOf = (path) => panels.get(nodesAlong(path).at(-1));

export function listenToRun() {
  api.addEventListener("piying.progress", (/** @type {any} */ { detail }) => {
    const panel = panelOf(detail.node);
    if (!panel) return;
    panel.running = detail;
    render(panel);
  });
  api.addEventListener("piying.motion", (/** @type {any} */ { detail }) => {
    const panel = panelOf(detail.node);
    if (!panel) return;
    panel.motion = `data:image/webp;base64,${detail.webp}`;
    render(panel);
  });
  api.addEventListener("executed", (/** @type {any} */ { detail }) => stopProgress(panelOf(detail.display_node ?? detail.node)));
  for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
    api.addEventListener(end, () => {
      for (const panel of panels.values()) stopProgress(panel);
      invalidatePlans();
    });
  }
}

/** @param {Panel | undefined} panel */
function stopProgress(panel) {
  if (!panel?.running && !panel?.motion) return;
  panel.running = panel.motion = null;
  render(panel);
}

// Switching workflow tabs and undo create the nodes again; the frontend keeps their outputs.
export function restoreRecords() {
  for (const panel of panels.values()) {
    // Outputs of nodes in subgraphs are kept under longer names than their ids.
    if (panel.node.graph !== root() || panel.inner) continue;
    const output = app.nodeOutputs?.[String(panel.node.id)];
    if (output && output !== panel.output && !panel.record && !panel.text) setOutput(panel, output);
  }
}
