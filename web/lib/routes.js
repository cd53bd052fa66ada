// Client of the pack's routes on ComfyUI's server.
import { api } from "../../../scripts/api.js";
import { t } from "./i18n.js";

/** @param {string} name @param {object} body */
export async function callRoute(name, body) {
  const response = await api.fetchApi(`/piying/${name}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const result = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(result.error ?? t("status", { status: response.status }));
  return result;
}
