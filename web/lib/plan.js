// Polling of memory plans: a sampler's plan is requested again when anything it depends on has changed.
import { callRoute } from "./routes.js";
import { SAMPLER, describe } from "./graph.js";
import { panels, render } from "./panel.js";
import { language, t } from "./i18n.js";

export function pollPlans() {
  for (const panel of panels.values()) {
    if (panel.role === SAMPLER && panel.node.graph && !panel.busy) updatePlan(panel);
  }
}

// A run changes how much memory is free.
export function invalidatePlans() {
  for (const panel of panels.values()) panel.key = null;
}

async function updatePlan(panel) {
  const { width, height, num_frames } = panel.record ?? {};
  const body = { ...describe(panel.node), last: { width, height, num_frames } };
  const key = JSON.stringify([body, language()]);
  if (key === panel.key) return;
  panel.key = key;
  panel.busy = true;
  try {
    const connected = body.inputs.model;
    panel.plan = connected ? await callRoute("plan", body) : null;
    panel.problem = connected ? null : t("connect");
  } catch (error) {
    panel.plan = null;
    panel.problem = error.message;
  }
  panel.busy = false;
  render(panel);
}
