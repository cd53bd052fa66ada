// Polling of memory plans: a sampler's plan is requested again when anything it depends on has changed.
import { callRoute } from "./routes.js";
import { SAMPLER, describe, isPlanned, outerNode, root } from "./graph.js";
import { addPanel, panels, render } from "./panel.js";
import { language, t } from "./i18n.js";

/** @import { ComfyNode, Panel, Plan } from "./types" */

const SHARED_FOR = 10_000; // milliseconds; memory may be taken or freed meanwhile

const answers = new Map(); // by question: { time, promise }

// Samplers that are alike, such as copies, share one request.
/** @param {string} key @param {object} body @param {number} [now] @returns {Promise<Plan>} */
export function planOf(key, body, now = Date.now()) {
  for (const [old, { time }] of answers) if (now - time > SHARED_FOR) answers.delete(old);
  if (!answers.has(key)) answers.set(key, { time: now, promise: callRoute("plan", body) });
  return answers.get(key).promise;
}

export function pollPlans() {
  const planned = [...panels.values()].filter((panel) => isPlanned(panel.role) && !panel.inner && isInSight(panel.node));
  const samplers = planned.filter((panel) => panel.role === SAMPLER);
  for (const panel of samplers) showOnSubgraph(panel, samplers);
  for (const panel of planned) if (!panel.busy) updatePlan(panel);
}

// A subgraph that has been removed keeps its nodes.
/** @param {ComfyNode} given */
const isInSight = ({ graph }) => Boolean(graph) && (graph === root() || outerNode(graph) !== null);

// The plan of a sampler, its progress and its failures are shown on the subgraph too, where it is the only one in it.
/** @param {Panel} panel @param {Panel[]} samplers */
function showOnSubgraph(panel, samplers) {
  const { graph } = panel.node;
  if (panel.outer || graph === root() || samplers.some((other) => other !== panel && other.node.graph === graph)) return;
  const outer = outerNode(graph);
  if (outer && !panels.has(outer)) addPanel(outer, SAMPLER, panel);
}

// A run changes how much memory is free.
export function invalidatePlans() {
  answers.clear();
  for (const panel of panels.values()) panel.key = null;
}

/** @param {Panel} panel */
async function updatePlan(panel) {
  const { width, height, num_frames } = panel.record ?? {};
  const body = { ...describe(panel.node), last: { width, height, num_frames } };
  const key = JSON.stringify([body, language()]);
  if (key === panel.key) return;
  panel.key = key;
  panel.busy = true;
  try {
    const connected = body.inputs.model;
    panel.plan = connected ? await planOf(key, body) : null;
    panel.problem = connected ? null : t("connect");
  } catch (error) {
    panel.plan = null;
    panel.problem = error.message;
  }
  panel.busy = false;
  render(panel);
}
