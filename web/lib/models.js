// The list of models to fetch: nothing is fetched before a button is pressed.
import { app } from "../../../scripts/app.js";
import { inquire } from "./ask.js";
import { dialog, element } from "./dom.js";
import { bytes, say } from "./words.js";

const POLL = 700; // milliseconds

export function openModels(loader, wanted) {
  const list = element("div", { class: "piying-models" });
  const problem = element("p", { class: "piying-problem" });
  const shown = dialog(say("title.models"), say("close"), element("p", {}, say("note")), problem, list);
  const state = { loader, wanted, list, problem, shown, timer: 0, fetching: false };
  shown.addEventListener("close", () => clearTimeout(state.timer));
  refresh(state);
}

async function refresh(state) {
  clearTimeout(state.timer);
  try {
    draw(state, await inquire("models", { class_type: state.loader }));
  } catch (error) {
    state.problem.textContent = error.message;
  }
  if (state.shown.open) state.timer = setTimeout(() => refresh(state), POLL);
}

async function act(state, name, question) {
  try {
    await inquire(name, question);
    state.problem.textContent = "";
  } catch (error) {
    state.problem.textContent = error.message;
  }
  await refresh(state);
}

function draw(state, { offers, installed, folder, job }) {
  const fetching = job?.state === "fetching";
  if (state.fetching && !fetching) app.refreshComboInNodes?.();
  state.fetching = fetching;
  const key = JSON.stringify([offers, installed, job]);
  if (key === state.key) return;
  state.key = key;
  const order = [...offers].sort((a, b) => (b.id === state.wanted) - (a.id === state.wanted));
  state.list.replaceChildren(
    element("p", { class: "piying-small" }, installed.length ? say("installed", { names: installed.join(", ") }) : say("none")),
    ...order.map((offer) => card(state, offer, job?.model === offer.id ? job : null, fetching)),
    element("p", { class: "piying-small" }, say("into", { folder })),
  );
}

function card(state, offer, job, fetching) {
  const facts = [
    offer.bytes === null ? say("unsized") : `${offer.exact ? "" : "≈ "}${bytes(offer.bytes)}`,
    `${say("licence")}: ${offer.licence}`,
    offer.min_vram_gb ? say("smallest", { gb: offer.min_vram_gb }) : null,
  ];
  const links = offer.sources.flatMap((url) => [
    " ", element("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, url.replace(/^https?:\/\//, "")),
  ]);
  return element(
    "article", { "data-model": offer.id },
    element("div", { class: "piying-line" }, element("b", {}, offer.title), button(state, offer, job, fetching)),
    element("div", { class: "piying-small" }, facts.filter(Boolean).join(" · ")),
    element("div", { class: "piying-small" }, say("from"), ...links),
    job ? progress(offer, job) : null,
  );
}

function button(state, offer, job, fetching) {
  if (job?.state === "fetching") return element("button", { onclick: () => act(state, "cancel", {}) }, say("stop"));
  if (offer.here === "yes") return element("span", {}, say("here"));
  const word = offer.here === "part" ? "resume" : "fetch";
  const start = () => act(state, "fetch", { model: offer.id });
  return element("button", { onclick: start, disabled: fetching ? "" : undefined }, say(word));
}

function progress(offer, job) {
  if (job.state !== "fetching") {
    return element("p", { class: "piying-said", "data-state": job.state }, job.state === "done" ? say("done") : job.said);
  }
  const all = offer.bytes ?? 0;
  const share = all ? Math.min(100, (100 * job.done) / all) : 0;
  const words = [
    job.file ? say("fetching", { file: job.file }) : job.said,
    all ? say("copied", { done: bytes(job.done), all: bytes(all) }) : bytes(job.done),
    job.speed ? say("speed", { speed: bytes(job.speed) }) : null,
  ];
  return element(
    "div", { class: "piying-bar" },
    element("i", { style: `width: ${share.toFixed(1)}%` }), element("span", {}, words.filter(Boolean).join(" · ")),
  );
}
