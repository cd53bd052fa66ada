// Asks for a sampler's plan anew whenever what it depends on has changed.
import { inquire } from "./ask.js";
import { SAMPLERS, describe } from "./graph.js";
import { panels, render } from "./panel.js";
import { language, say } from "./words.js";

export function watchPlans() {
  for (const panel of panels.values()) {
    if (SAMPLERS.has(panel.node.comfyClass) && panel.node.graph && !panel.busy) watch(panel);
  }
}

// A run changes what is free: plans are asked for again after it.
export function forgetPlans() {
  for (const panel of panels.values()) panel.key = null;
}

async function watch(panel) {
  const question = describe(panel.node);
  const key = JSON.stringify([question, language()]);
  if (key === panel.key) return;
  panel.key = key;
  panel.busy = true;
  try {
    const connected = question.inputs.model;
    panel.plan = connected ? await inquire("plan", question) : null;
    panel.problem = connected ? null : say("connect");
  } catch (error) {
    panel.plan = null;
    panel.problem = error.message;
  }
  panel.busy = false;
  render(panel);
}
