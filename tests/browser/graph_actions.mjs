// Actions that build, load and export graphs, all through the frontend's own API.
import { readFileSync, writeFileSync } from "node:fs";
import { basename, extname } from "node:path";

const MIME = { ".png": "image/png", ".mp4": "video/mp4", ".webm": "video/webm", ".webp": "image/webp", ".json": "application/json" };

async function new_graph({ page }) {
  await page.evaluate(() => window.drive.clear());
}

async function load_graph({ page }, { workflow, file }) {
  const data = workflow ?? JSON.parse(readFileSync(file, "utf8"));
  await page.evaluate((d) => window.app.loadGraphData(d), data);
  return { unknown: await page.evaluate(() => window.drive.unknownTypes()) };
}

async function add_node({ page }, spec) {
  return page.evaluate((s) => window.drive.addNode(s), spec);
}

async function link({ page }, spec) {
  await page.evaluate((s) => window.drive.link(s), spec);
}

async function group({ page }, spec) {
  await page.evaluate((s) => window.drive.addGroup(s), spec);
}

async function set_widget({ page }, { node, name, value }) {
  await page.evaluate(([n, w, v]) => window.drive.setWidget(n, w, v), [node, name, value]);
}

async function serialize({ page }, { file }) {
  const data = await page.evaluate(() => window.drive.serialize());
  if (file) writeFileSync(file, JSON.stringify(data, null, 2) + "\n");
  return file ? { file, nodes: data.nodes.length } : data;
}

async function graph_to_prompt({ page }) {
  return page.evaluate(async () => JSON.parse(JSON.stringify(await window.app.graphToPrompt())));
}

// The graph is emptied first, so that what appears afterwards can only come from the file.
async function drop_file({ page }, { file, timeout_s }) {
  const type = MIME[extname(file).toLowerCase()];
  const base64 = readFileSync(file).toString("base64");
  await page.evaluate(() => window.drive.clear());
  await page.evaluate((f) => window.drive.dropFile(f), { name: basename(file), type, base64 });
  const timeout = (timeout_s ?? 20) * 1000;
  await page.waitForFunction(() => window.drive.count() > 0, null, { timeout, polling: 200 });
  return { unknown: await page.evaluate(() => window.drive.unknownTypes()) };
}

export const graphActions = { new_graph, load_graph, add_node, link, group, set_widget, serialize, graph_to_prompt, drop_file };
