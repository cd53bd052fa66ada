// Failures of a run: told on the node they are about, as sentences in the page's language.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { inPageLanguage, t } from "./i18n.js";
import { labelOf, nodesAlong } from "./graph.js";
import { clearFailures, showFailure } from "./panel.js";

/** @import { ComfyNode } from "./types" */

/** @param {string | undefined} type */
const isOurs = (type) => /^Piying/.test(type ?? "");

// ComfyUI's frontend formats its dialog from the same objects, so their texts are replaced where they are.
export function watchFailures() {
  const send = api.queuePrompt;
  api.queuePrompt = function (/** @type {any[]} */ ...rest) {
    clearFailures();
    return send.apply(this, rest).then(
      (/** @type {any} */ answer) => {
        const told = tellRefusals(answer.node_errors);
        // ComfyUI runs the other outputs and says so nowhere.
        if (told.length) warn(t("partial"), told.join("\n"));
        return answer;
      },
      (/** @type {any} */ error) => {
        const { error: general, node_errors: refusals } = error.response ?? {};
        if (tellRefusals(refusals).length && general?.message) general.message = t("nothingRan");
        throw error;
      },
    );
  };
  const dispatch = api.dispatchCustomEvent;
  api.dispatchCustomEvent = function (/** @type {string} */ type, /** @type {any} */ detail) {
    if (type === "execution_error") tellFailure(detail);
    return dispatch.call(this, type, detail);
  };
}

/** @param {string} summary @param {string} detail */
function warn(summary, detail) {
  app.extensionManager.toast.add({ severity: "error", summary, detail });
}

// The sentences that were told, each with the title of its node.
/** @param {any} nodeErrors */
function tellRefusals(nodeErrors) {
  const told = [];
  for (const [id, refusal] of Object.entries(nodeErrors ?? {})) {
    if (!isOurs(refusal.class_type)) continue;
    const node = nodesAlong(id).at(-1);
    refusal.errors = withoutRepetitions(refusal.errors.map((/** @type {any} */ error) => ({ ...error, ...worded(error, node) })));
    const sentences = refusal.errors.map((/** @type {any} */ error) => error.details);
    refusal.class_type = node?.title ?? refusal.class_type;
    told.push(`${refusal.class_type}: ${sentences.join(" ")}`);
    show(id, sentences.join(" "));
  }
  return told;
}

// Where a check looks at several inputs, ComfyUI repeats its sentence for each of them.
/** @param {any[]} errors */
function withoutRepetitions(errors) {
  const kept = new Map();
  for (const error of errors) {
    const earlier = kept.get(error.details);
    const isAbout = (/** @type {any} */ one) => error.details.startsWith(`${one.extra_info?.input_name} `);
    if (!earlier || (isAbout(error) && !isAbout(earlier))) kept.set(error.details, error);
  }
  return [...kept.values()];
}

/** @param {any} given @param {ComfyNode | undefined} node */
function worded({ type, details, extra_info: info }, node) {
  const name = info?.input_name ?? "";
  const label = labelOf(node, name);
  const value = info?.received_value;
  const [kind, options] = info?.input_config ?? [];
  /** @type {Record<string, () => string>} */
  const sentences = {
    custom_validation_failed: () => inPageLanguage(details.replace(`${name} - `, "")),
    required_input_missing: () => t("inputMissing", { label }),
    value_not_in_list: () => t("notListed", { label, value, choices: choicesOf(kind, options).join(", ") }),
    value_smaller_than_min: () => t("outside", { label, value, low: options?.min, high: options?.max }),
    value_bigger_than_max: () => t("outside", { label, value, low: options?.min, high: options?.max }),
    invalid_input_type: () => t("notOfType", { label, value, type: kind }),
    return_type_mismatch: () => t("otherType", { label, type: kind, given: info?.received_type }),
  };
  const sentence = sentences[type];
  return sentence ? { message: t("wrong"), details: sentence() } : { details: inPageLanguage(details) };
}

/** @param {string | string[]} kind @param {Record<string, any> | undefined} options */
const choicesOf = (kind, options) => (Array.isArray(kind) ? kind : options?.options ?? []);

/** @param {any} detail */
function tellFailure(detail) {
  const isKnown = /^piying\./.test(detail.exception_type);
  const message = inPageLanguage(detail.exception_message.trim());
  if (isKnown) {
    // A mistake that a person can mend is in the graph: the lines of code on the way to it say nothing more.
    Object.assign(detail, { exception_message: message, exception_type: t("failed"), traceback: [] });
  }
  if (isKnown || isOurs(detail.node_type)) show(detail.node_id, isKnown ? message : t("unexpected", { message }));
  detail.node_type = nodesAlong(detail.node_id).at(-1)?.title ?? detail.node_type;
}

// On the node itself, and on each subgraph that it is in.
/** @param {string} id @param {string} sentence */
function show(id, sentence) {
  for (const node of nodesAlong(id)) showFailure(node, sentence);
}
