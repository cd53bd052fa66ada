// News of a run: its phase, time left, moving previews, and what was made how.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { nodeOf } from "./graph.js";
import { panels, render, take } from "./panel.js";
import { forgetPlans } from "./plan.js";

const panelOf = (path) => panels.get(nodeOf(path));

export function listen() {
  api.addEventListener("piying.progress", ({ detail }) => {
    const panel = panelOf(detail.node);
    if (!panel) return;
    panel.running = detail;
    render(panel);
  });
  api.addEventListener("piying.motion", ({ detail }) => {
    const panel = panelOf(detail.node);
    if (!panel) return;
    panel.motion = `data:image/webp;base64,${detail.webp}`;
    render(panel);
  });
  api.addEventListener("executed", ({ detail }) => still(panelOf(detail.display_node ?? detail.node)));
  for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
    api.addEventListener(end, () => {
      for (const panel of panels.values()) still(panel);
      forgetPlans();
    });
  }
}

function still(panel) {
  if (!panel?.running && !panel?.motion) return;
  panel.running = panel.motion = null;
  render(panel);
}

// Nodes are made anew when a tab of the page is changed or a step undone; the page keeps what they gave.
export function restoreRecords() {
  for (const panel of panels.values()) {
    const output = app.nodeOutputs?.[String(panel.node.id)];
    if (output && output !== panel.output && !panel.record && !panel.text) take(panel, output);
  }
}
