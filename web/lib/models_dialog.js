// Dialog of downloadable models; nothing is downloaded until a button is pressed.
import { app } from "../../../scripts/app.js";
import { callRoute } from "./routes.js";
import { dialog, element } from "./dom.js";
import { bytes, t } from "./i18n.js";

const POLL_INTERVAL = 700; // milliseconds

export function openModels(loader, preferred) {
  const list = element("div", { class: "piying-models" });
  const problem = element("p", { class: "piying-problem" });
  const modal = dialog(t("title.models"), t("close"), element("p", {}, t("note")), problem, list);
  const state = { loader, preferred, list, problem, modal, timer: 0, fetching: false };
  modal.addEventListener("close", () => clearTimeout(state.timer));
  refresh(state);
}

async function refresh(state) {
  clearTimeout(state.timer);
  try {
    draw(state, await callRoute("models", { class_type: state.loader }));
  } catch (error) {
    state.problem.textContent = error.message;
  }
  if (state.modal.open) state.timer = setTimeout(() => refresh(state), POLL_INTERVAL);
}

async function act(state, route, body) {
  try {
    await callRoute(route, body);
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
  const order = [...offers].sort((a, b) => (b.id === state.preferred) - (a.id === state.preferred));
  state.list.replaceChildren(
    element("p", { class: "piying-small" }, installed.length ? t("installed", { names: installed.join(", ") }) : t("none")),
    ...order.map((offer) => card(state, offer, job?.model === offer.id ? job : null, fetching)),
    element("p", { class: "piying-small" }, t("into", { folder })),
  );
}

function card(state, offer, job, fetching) {
  const facts = [
    offer.bytes === null ? t("unsized") : `${offer.exact ? "" : "≈ "}${bytes(offer.bytes)}`,
    `${t("licence")}: ${offer.licence}`,
    offer.min_vram_gb ? t("smallest", { gb: offer.min_vram_gb }) : null,
  ];
  const links = offer.sources.flatMap((url) => [
    " ", element("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, url.replace(/^https?:\/\//, "")),
  ]);
  return element(
    "article", { "data-model": offer.id },
    element("div", { class: "piying-line" }, element("b", {}, offer.title), button(state, offer, job, fetching)),
    element("div", { class: "piying-small" }, facts.filter(Boolean).join(" · ")),
    element("div", { class: "piying-small" }, t("from"), ...links),
    job ? progress(offer, job) : null,
  );
}

function button(state, offer, job, fetching) {
  if (job?.state === "fetching") return element("button", { onclick: () => act(state, "cancel", {}) }, t("stop"));
  if (offer.here === "yes") return element("span", {}, t("here"));
  const label = offer.here === "part" ? "resume" : "fetch";
  const start = () => act(state, "fetch", { model: offer.id });
  return element("button", { onclick: start, disabled: fetching ? "" : undefined }, t(label));
}

function progress(offer, job) {
  if (job.state !== "fetching") {
    return element("p", { class: "piying-status", "data-state": job.state }, job.state === "done" ? t("done") : job.message);
  }
  const all = offer.bytes ?? 0;
  const share = all ? Math.min(100, (100 * job.done) / all) : 0;
  const parts = [
    job.file ? t("fetching", { file: job.file }) : job.message,
    all ? t("copied", { done: bytes(job.done), all: bytes(all) }) : bytes(job.done),
    job.speed ? t("speed", { speed: bytes(job.speed) }) : null,
  ];
  return element(
    "div", { class: "piying-bar" },
    element("i", { style: `width: ${share.toFixed(1)}%` }), element("span", {}, parts.filter(Boolean).join(" · ")),
  );
}
