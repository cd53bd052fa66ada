// Piying in ComfyUI's browser page: what a run needs, before it runs, and how it goes, while it does.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { inquire } from "./lib/ask.js";
import { LOADERS, SAMPLERS, TEXTS } from "./lib/graph.js";
import { matchByName } from "./lib/older.js";
import { addPanel } from "./lib/panel.js";
import { watchPlans } from "./lib/plan.js";
import { listen, restoreRecords } from "./lib/run.js";

const MOVING = "Piying.MovingPreviews";
const TICK = 600; // milliseconds

let told = null;

// ComfyUI forgets a tab when it restarts; the tab's name comes with the first message.
function joinNews(again) {
  const question = { client: api.clientId, moving: Boolean(app.extensionManager.setting.get(MOVING)) };
  const key = JSON.stringify(question);
  if (!api.clientId || (key === told && !again)) return;
  told = key;
  inquire("watch", question).catch(() => (told = null));
}

function style() {
  const link = document.createElement("link");
  Object.assign(link, { rel: "stylesheet", href: new URL("./piying.css", import.meta.url).href });
  document.head.append(link);
}

app.registerExtension({
  name: "Piying",
  settings: [
    {
      id: MOVING,
      category: ["Piying", "Previews", "MovingPreviews"],
      name: "Moving previews",
      tooltip: "While a video is made, show it moving on its node, every few seconds.",
      type: "boolean",
      defaultValue: true,
      onChange: () => joinNews(false),
    },
  ],
  setup() {
    style();
    listen();
    api.addEventListener("reconnected", () => joinNews(true));
    setInterval(() => {
      if (document.hidden) return;
      joinNews(false);
      restoreRecords();
      watchPlans();
    }, TICK);
  },
  beforeConfigureGraph(graph) {
    matchByName(graph, (type) => window.LiteGraph.registered_node_types[type]?.nodeData?.input);
  },
  nodeCreated(node) {
    const name = node.comfyClass;
    if (SAMPLERS.has(name) || LOADERS.has(name) || TEXTS.has(name)) addPanel(node);
  },
});
