// Questions to our routes on ComfyUI's server.
import { api } from "../../../scripts/api.js";

export async function inquire(name, question) {
  const response = await api.fetchApi(`/piying/${name}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(question),
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `ComfyUI answers ${response.status}.`);
  return answer;
}
