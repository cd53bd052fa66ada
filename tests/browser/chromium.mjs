// Opens the ComfyUI frontend in headless Chromium and collects what its console says.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const ARGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

function playwright(folder) {
  const require = createRequire(import.meta.url);
  return require(folder ?? "playwright-core");
}

export async function openFrontend({ url, playwright: folder, chromium: executablePath, viewport }) {
  const browser = await playwright(folder).chromium.launch({ executablePath, args: ARGS });
  const page = await browser.newPage({ viewport: viewport ?? { width: 1600, height: 1000 } });
  const said = [];
  page.on("console", (m) => said.push({ type: m.type(), text: m.text(), at: m.location().url }));
  page.on("pageerror", (e) => said.push({ type: "pageerror", text: String(e.stack ?? e), at: "" }));
  await page.goto(url, { waitUntil: "domcontentloaded", timeout: 120000 });
  await appReady(page);
  return { browser, page, said };
}

// The canvas exists before the node types are registered; both are needed to build a graph.
export async function appReady(page) {
  await page.waitForFunction(
    () => window.app?.canvas && window.app?.api && "SaveImage" in (window.LiteGraph?.registered_node_types ?? {})
      && window.app.vueAppReady !== false,
    null, { timeout: 120000, polling: 250 },
  );
  await page.evaluate(readFileSync(join(import.meta.dirname, "in_page.js"), "utf8"));
  await page.evaluate(() => window.drive.listen());
}
