// Drives the ComfyUI frontend: node drive.mjs SCRIPT.json (or the script on stdin), a JSON result on stdout.
// The script: { url, chromium, playwright, viewport, actions: [{ do: NAME, ... }] }.
// The result: { results: [one per action], events, console, error }. The action `attempt` has actions of its own and
// gives such a result: what fails in it ends it alone.
import { readFileSync } from "node:fs";
import { openFrontend } from "./chromium.mjs";
import { graphActions } from "./graph_actions.mjs";
import { handActions } from "./hand_actions.mjs";
import { pageActions } from "./page_actions.mjs";
import { runActions } from "./run_actions.mjs";

async function perform(session, action, index) {
  const known = ACTIONS[action.do];
  if (!known) throw new Error(`action ${index}: no action "${action.do}"; there are: ${Object.keys(ACTIONS).join(", ")}`);
  try {
    return (await known(session, action)) ?? null;
  } catch (error) {
    throw new Error(`action ${index} (${action.do}): ${error.message}`);
  }
}

// Performs actions up to the first that fails; what the page did and said meanwhile comes with the results.
async function attempt(session, { actions }) {
  const begin = session.said.length;
  const earlier = await session.page.evaluate(() => window.drive.events.length);
  const results = [];
  let error = null;
  try {
    for (const [index, action] of actions.entries()) results.push(await perform(session, action, index));
  } catch (failure) {
    error = failure.message;
  }
  const events = await session.page.evaluate((n) => window.drive.events.slice(n), earlier);
  return { results, events, console: session.said.slice(begin), error };
}

const ACTIONS = { ...graphActions, ...runActions, ...pageActions, ...handActions, attempt };

async function drive(script) {
  const session = await openFrontend(script);
  const outcome = await attempt(session, script);
  outcome.console = session.said; // with what the page said while it was opened
  await session.browser.close();
  return outcome;
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
