// Actions that run a graph the way a person does, and look at what comes of it.

const CANCEL = /cancel current run|interrupt|cancel/i;

async function press(page, locator, command) {
  if (await locator.count()) {
    await locator.first().click();
    return "button";
  }
  await page.evaluate((c) => window.app.extensionManager.command.execute(c), command);
  return "command";
}

function runButton(page) {
  const split = page.getByTestId("queue-button");
  return split.locator("button").first().or(split.and(page.locator("button")))
    .or(page.getByRole("button", { name: "Run", exact: true }));
}

// Answers { by, status, body } of POST /prompt: a graph with a mistake never starts, so no event would come.
async function run({ page }, { wait, timeout_s }) {
  const before = await page.evaluate(() => window.drive.finished().length);
  const posted = page.waitForResponse((r) => r.request().method() === "POST" && /\/prompt$/.test(r.url()));
  const by = await press(page, runButton(page), "Comfy.QueuePrompt");
  const response = await posted;
  const answer = { by, status: response.status(), body: await response.json() };
  if (answer.status === 200 && wait !== false) answer.end = await finished(page, before, timeout_s);
  return answer;
}

async function finished(page, before, timeout_s) {
  const timeout = (timeout_s ?? 300) * 1000;
  await page.waitForFunction((n) => window.drive.finished().length > n, before, { timeout, polling: 200 });
  return page.evaluate((n) => window.drive.finished()[n], before);
}

// `max` picks the progress of one phase: a node reports several, of different lengths.
async function wait_event({ page }, { type, max, timeout_s }) {
  const timeout = (timeout_s ?? 120) * 1000;
  const seen = ([t, m]) => window.drive.events.some((e) => e.type === t && (m === null || e.detail.max === m));
  await page.waitForFunction(seen, [type, max ?? null], { timeout, polling: 50 });
}

// Answers too how many steps were told of after ComfyUI had heard of it.
async function interrupt({ page }, { timeout_s }) {
  const before = await page.evaluate(() => window.drive.finished().length);
  const heard = page.waitForResponse((r) => r.request().method() === "POST" && /\/interrupt$/.test(r.url()));
  const by = await press(page, page.getByRole("button", { name: CANCEL }), "Comfy.Interrupt");
  await heard;
  const steps = () => page.evaluate(() => window.drive.events.filter((e) => e.type === "progress").length);
  const told = await steps();
  const end = await finished(page, before, timeout_s);
  return { by, end, steps_after: (await steps()) - told };
}

async function events({ page }) {
  return page.evaluate(() => window.drive.events);
}

// Waits until the node shows something that has loaded: its pictures, or a video element on the page.
async function media({ page }, { node, timeout_s }) {
  const timeout = (timeout_s ?? 20) * 1000;
  await page.waitForFunction((n) => window.drive.media(n).some((m) => m.loaded && m.width > 0), node, { timeout, polling: 200 });
  return page.evaluate((n) => window.drive.media(n), node);
}

async function screenshot({ page }, { file, fit }) {
  if (fit !== false) await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));
  await page.waitForTimeout(1200);
  await page.screenshot({ path: file });
}

export const runActions = { run, wait_event, interrupt, events, media, screenshot };
