// Actions on the page around the graph: what a person clicks, types and reads.
import { appReady } from "./chromium.mjs";

async function evaluate({ page }, { script }) {
  return page.evaluate(script);
}

// Waits until a script gives something that is true, and answers it.
async function until({ page }, { script, timeout_s }) {
  const timeout = (timeout_s ?? 30) * 1000;
  const found = await page.waitForFunction(script, null, { timeout, polling: 100 });
  return found.jsonValue();
}

async function click({ page }, { selector, text, timeout_s }) {
  const found = text === undefined ? page.locator(selector) : page.locator(selector).filter({ hasText: text });
  await found.first().click({ timeout: (timeout_s ?? 20) * 1000 });
}

async function press({ page }, { key }) {
  await page.keyboard.press(key);
}

async function pause({ page }, { seconds }) {
  await page.waitForTimeout(seconds * 1000);
}

async function locale({ page }, { language }) {
  await page.evaluate((l) => window.app.extensionManager.setting.set("Comfy.Locale", l), language);
  await page.reload({ waitUntil: "domcontentloaded" });
  await appReady(page);
}

// The node search as a person opens it: a double click where nothing lies. A busy machine may miss one.
async function openSearch(page) {
  const box = page.locator(".comfy-vue-node-search-container input, [role=dialog] input").first();
  for (let tries = 0; tries < 5 && !(await box.isVisible()); tries += 1) {
    await page.locator("#graph-canvas").dblclick({ position: { x: 700, y: 450 } });
    await box.waitFor({ timeout: 8000 }).catch(() => null);
  }
  return box;
}

// The texts of a list that fills while one types, once there are some and they stay as they are.
async function settled(options, page) {
  let texts = [];
  for (let looks = 0, same = 0; looks < 20 && (same < 2 || !texts.length); looks += 1) {
    await page.waitForTimeout(350);
    const now = (await options.allInnerTexts()).map((text) => text.trim()).filter(Boolean);
    same = String(now) === String(texts) ? same + 1 : 0;
    texts = now;
  }
  return texts;
}

async function search_nodes({ page }, { words }) {
  const found = {};
  for (const word of words) {
    await page.evaluate(() => window.drive.clear());
    const box = await openSearch(page);
    await box.fill(word);
    found[word] = await settled(page.locator("[role=option], [data-testid=node-search-result]"), page);
    // A box that is still fading would be taken for the next one.
    for (let tries = 0; tries < 5 && (await box.isVisible()); tries += 1) {
      await page.keyboard.press("Escape");
      await box.waitFor({ state: "hidden", timeout: 2000 }).catch(() => null);
    }
  }
  return found;
}

// A node as a person adds it: by its name in the search, and Enter.
async function add_by_search({ page }, { word }) {
  const before = await page.evaluate(() => window.drive.count());
  const box = await openSearch(page);
  await box.fill(word);
  const found = await settled(page.locator("[role=option], [data-testid=node-search-result]"), page);
  await page.keyboard.press("Enter");
  // Newer frontends carry the node at the pointer until a click puts it down.
  await page.locator("#graph-canvas").click({ position: { x: 500, y: 300 } }).catch(() => null);
  await page.waitForFunction((n) => window.drive.count() > n, before, { timeout: 10000 });
  return found;
}

// The help page of a node, opened by the button that appears over a selected node.
async function open_help({ page }, { node }) {
  await page.evaluate((n) => window.drive.select(n), node);
  await page.getByTestId("info-button").first().click({ timeout: 20000 });
  const help = page.locator(".node-help-content").first();
  await help.locator("table, ul, h2").first().waitFor({ timeout: 20000 });
  await page.waitForFunction(() => [...document.querySelectorAll(".node-help-content img")].every((i) => i.naturalWidth));
  const pictures = await help.locator("img").count();
  return { text: await help.innerText(), pictures };
}

export const pageActions = { evaluate, until, click, press, pause, locale, search_nodes, add_by_search, open_help };
