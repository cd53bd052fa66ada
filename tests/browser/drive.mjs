// Drives the ComfyUI frontend: node drive.mjs SCRIPT.json (or the script on stdin), a JSON result on stdout.
// The script: { url, chromium, playwright, viewport, actions: [{ do: NAME, ... }] }.
// The result: { results: [one per action], events, console, error }.
import { readFileSync } from "node:fs";
import { openFrontend } from "./chromium.mjs";
import { graphActions } from "./graph_actions.mjs";
import { runActions } from "./run_actions.mjs";

const ACTIONS = { ...graphActions, ...runActions };

async function perform(session, action, index) {
  const known = ACTIONS[action.do];
  if (!known) throw new Error(`action ${index}: no action "${action.do}"; there are: ${Object.keys(ACTIONS).join(", ")}`);
  try {
    return (await known(session, action)) ?? null;
  } catch (error) {
    throw new Error(`action ${index} (${action.do}): ${error.message}`);
  }
}

async function drive(script) {
  const session = await openFrontend(script);
  const results = [];
  let error = null;
  try {
    for (const [index, action] of script.actions.entries()) results.push(await perform(session, action, index));
  } catch (failure) {
    error = failure.message;
  }
  const events = await session.page.evaluate(() => window.drive.events);
  await session.browser.close();
  return { results, events, console: session.said, error };
}

function readScript() {
  const script = JSON.parse(readFileSync(process.argv[2] ?? 0, "utf8"));
  return {
    ...script,
    url: script.url ?? process.env.COMFYUI_URL,
    playwright: script.playwright ?? process.env.PLAYWRIGHT_CORE,
    chromium: script.chromium ?? process.env.CHROMIUM,
  };
}

const result = await drive(readScript());
console.log(JSON.stringify(result));
process.exitCode = result.error ? 1 : 0;
