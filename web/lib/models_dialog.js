// Dialog of downloadable models; nothing is downloaded until a button is pressed.
import { app } from "../../../scripts/app.js";
import { callRoute } from "./routes.js";
import { dialog, element } from "./dom.js";
import { bytes, inPageLanguage, modelTexts, t, time } from "./i18n.js";

/** @import { Job, ModelsFound, ModelsState, Offer } from "./types" */

const POLL_INTERVAL = 700; // milliseconds

/** @param {string | null} loader @param {string | undefined} preferred */
export function openModels(loader, preferred) {
  const list = element("div", { class: "piying-models" });
  const problem = element("p", { class: "piying-problem" });
  const modal = dialog(t("title.models"), t("close"), element("p", {}, t("note")), problem, list);
  const state = { loader, preferred, list, problem, modal, timer: 0, fetching: false };
  modal.addEventListener("close", () => clearTimeout(state.timer));
  refresh(state);
}

/** @param {ModelsState} state */
async function refresh(state) {
  clearTimeout(state.timer);
  try {
    // Planning for every model takes a moment, and is asked for once.
    const found = await callRoute("models", { class_type: state.loader, advice: !state.advice });
    state.advice ??= { plans: found.plans, recommended: found.recommended };
    draw(state, found);
  } catch (error) {
    state.problem.textContent = error.message;
  }
  if (state.modal.open) state.timer = setTimeout(() => refresh(state), POLL_INTERVAL);
}

/** @param {ModelsState} state @param {string} route @param {object} body */
async function act(state, route, body) {
  try {
    await callRoute(route, body);
    state.problem.textContent = "";
  } catch (error) {
    state.problem.textContent = error.message;
  }
  await refresh(state);
}

/** @param {ModelsState} state @param {ModelsFound} found */
function draw(state, found) {
  const { offers, installed, folder, free, hubs, job } = found;
  const fetching = job?.state === "fetching";
  if (state.fetching && !fetching) app.refreshComboInNodes?.();
  state.fetching = fetching;
  const key = JSON.stringify([offers, installed, job]);
  if (key === state.key) return;
  state.key = key;
  const { recommended } = state.advice ?? {};
  const rank = (/** @type {Offer} */ offer) => 2 * Number(offer.id === state.preferred) + Number(offer.id === recommended);
  const cards = [...offers].sort((a, b) => rank(b) - rank(a)).map((offer) => (
    [offer.kind, card(state, offer, job?.model === offer.id ? job : null, fetching)]
  ));
  const of = (/** @type {string} */ kind) => cards.filter(([one]) => one === kind).map(([, made]) => made);
  const hub = Object.values(hubs).map(bare).join(", ");
  state.list.replaceChildren(
    element("p", { class: "piying-small" }, installed.length ? t("installed", { names: installed.join(", ") }) : t("none")),
    element("p", { class: "piying-small" }, t("room", { free: bytes(free), folder }), " · ", t("hub", { hub })),
    ...of("model"),
    of("lora").length ? element("h4", {}, t("title.loras")) : "",
    ...of("lora"),
    terminal(found.commands, recommended ?? offers[0]?.id),
  );
}

/** @param {string} address */
const bare = (address) => address.replace(/^https?:\/\//, "");

/** @param {Record<string, string>} commands @param {string | undefined} model */
function terminal(commands, model) {
  const steps = Object.entries(commands).flatMap(([name, command]) => [
    element("p", { class: "piying-small" }, t(`step.${name}`)),
    element("pre", {}, command.replace("MODEL", model ?? "MODEL")),
  ]);
  return element("details", {}, element("summary", {}, t("terminal")), ...steps);
}

/** @param {ModelsState} state @param {Offer} offer @param {Job | null} job @param {boolean} fetching */
function card(state, offer, job, fetching) {
  const { plans, recommended } = state.advice ?? {};
  const { title, about } = modelTexts(offer.id);
  const facts = [
    offer.bytes === null ? t("unsized") : `${offer.exact ? "" : "≈ "}${bytes(offer.bytes)}`,
    `${t("licence")}: ${offer.licence}`,
    offer.min_vram_gb ? t("smallest", { gb: offer.min_vram_gb }) : null,
    onThisMachine(plans?.[offer.id]),
  ];
  const links = offer.sources.flatMap((url) => [
    " ", element("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, bare(url)),
  ]);
  return element(
    "article", { "data-model": offer.id },
    element(
      "div", { class: "piying-line" },
      element(
        "span", {}, element("b", {}, title ?? offer.title), " ",
        offer.id === recommended ? element("span", { class: "piying-verdict", "data-verdict": "fits" }, t("recommended")) : null,
      ),
      button(state, offer, job, fetching),
    ),
    about ? element("div", {}, about) : null,
    element("div", { class: "piying-small" }, facts.filter(Boolean).join(" · ")),
    element("div", { class: "piying-small" }, t("from"), ...links),
    job ? progress(offer, job) : null,
  );
}

/** @param {{ fits: boolean, words: string, seconds: number } | undefined} plan */
function onThisMachine(plan) {
  if (!plan) return null;
  return plan.fits ? t("takes", { size: inPageLanguage(plan.words), time: time(plan.seconds) }) : t("tooBig");
}

/** @param {ModelsState} state @param {Offer} offer @param {Job | null} job @param {boolean} fetching */
function button(state, offer, job, fetching) {
  if (job?.state === "fetching") return element("button", { onclick: () => act(state, "cancel", {}) }, t("stop"));
  if (offer.here === "yes") return element("span", {}, t("here"));
  const label = offer.here === "part" ? "resume" : "fetch";
  const start = () => act(state, "fetch", { model: offer.id });
  return element("button", { onclick: start, disabled: fetching ? "" : undefined }, t(label));
}

/** @param {Offer} offer @param {Job} job */
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
