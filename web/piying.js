// Piying's frontend extension: the memory plan before a run, progress and previews during it, the run record after it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { callRoute } from "./lib/routes.js";
import { roleOf } from "./lib/graph.js";
import { migrateWidgets } from "./lib/widget_migration.js";
import { addPanel, restoreTexts, watchNotes } from "./lib/panel.js";
import { pollPlans } from "./lib/plan.js";
import { arrangeWidgets, showUsed } from "./lib/widgets.js";
import { listenToRun, restoreRecords } from "./lib/run_events.js";
import { watchFailures } from "./lib/failures.js";
import { titleTemplates } from "./lib/templates.js";
import { loadTexts } from "./lib/i18n.js";

/** @import { ComfyNode } from "./lib/types" */

const MOVING_PREVIEWS = "Piying.MovingPreviews";
const POLL_INTERVAL = 600; // milliseconds

/** @type {string | null} */
let subscription = null; // the last request sent, as JSON

// Sent again after a reconnect: a restarted ComfyUI has no subscriptions. The client id comes with its first message.
/** @param {{ force: boolean }} given */
function subscribe({ force }) {
  const body = { client: api.clientId, moving: Boolean(app.extensionManager.setting.get(MOVING_PREVIEWS)) };
  const key = JSON.stringify(body);
  if (!api.clientId || (key === subscription && !force)) return;
  subscription = key;
  callRoute("watch", body).catch(() => (subscription = null));
}

function addStylesheet() {
  const link = document.createElement("link");
  Object.assign(link, { rel: "stylesheet", href: new URL("./piying.css", import.meta.url).href });
  document.head.append(link);
}

app.registerExtension({
  name: "Piying",
  settings: [
    {
      id: MOVING_PREVIEWS,
      category: ["Piying", "Previews", "MovingPreviews"],
      name: "Moving previews",
      tooltip: "While a video is made, show it moving on its node, every few seconds.",
      type: "boolean",
      defaultValue: true,
      onChange: () => subscribe({ force: false }),
    },
  ],
  // Frontend 1.58 searches these words; older servers leave them out of the definitions.
  async addCustomNodeDefs(/** @type {Record<string, any>} */ definitions) {
    for (const [name, words] of Object.entries(await callRoute("aliases", {}))) {
      if (definitions[name]) definitions[name].search_aliases ??= words;
    }
  },
  // Before the first node is made.
  async init() {
    addStylesheet();
    await loadTexts();
    watchFailures();
    titleTemplates();
  },
  setup() {
    listenToRun();
    api.addEventListener("reconnected", () => subscribe({ force: true }));
    setInterval(() => {
      if (document.hidden) return;
      subscribe({ force: false });
      restoreRecords();
      restoreTexts();
      pollPlans();
    }, POLL_INTERVAL);
  },
  beforeConfigureGraph(/** @type {any} */ graph) {
    migrateWidgets(graph, (type) => window.LiteGraph.registered_node_types[type]?.nodeData?.input);
  },
  nodeCreated(/** @type {ComfyNode} */ node) {
    if (!/^Piying/.test(node.comfyClass ?? "")) return;
    const role = roleOf(node);
    if (role) addPanel(node, role);
    else watchNotes(node);
    arrangeWidgets(node);
  },
  loadedGraphNode(/** @type {any} */ node) {
    if (/^Piying/.test(node.comfyClass ?? "")) showUsed(node, node.constructor.nodeData?.input);
  },
});
