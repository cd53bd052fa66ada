// A job done by hand: with pointer and keys alone, each of which is counted, up to the request that queues the run.

// What a person takes for each, by the keystroke-level model (Card, Moran and Newell, 1980): 1.1 s to point, 0.1 s for a
// button to go down or up, 0.2 s for a key, 0.4 s from the mouse to the keyboard or back. No time to think.
const SECONDS = { click: 1.3, double: 1.5, drag: 2.4, wheel: 1.3, key: 0.2, hands: 0.8 };
const PATIENCE = 60000; // milliseconds
const OPTIONS = "[role=option], [data-testid=node-search-result]";
const SEARCH = ".comfy-vue-node-search-container input, [role=dialog] input";

class Hand {
  constructor(page) {
    Object.assign(this, { page, clicks: 0, keys: 0, person: 0 });
  }

  count(kind, keys = 0) {
    if (kind) this.clicks += 1;
    this.keys += keys;
    this.person += (SECONDS[kind] ?? 0) + (keys ? SECONDS.hands + keys * SECONDS.key : 0);
  }

  // Smaller, so that a graph fits; the texts are still drawn.
  async zoom({ notches }) {
    await this.page.mouse.move(800, 500);
    for (let each = 0; each < notches; each += 1) await this.page.mouse.wheel(0, 100);
    this.count("wheel");
  }

  async search({ word, hit, at: [x, y], type }) {
    const before = await this.page.evaluate(() => window.drive.count());
    const box = this.page.locator(SEARCH).first();
    // A busy machine may miss one.
    for (let tries = 0; tries < 5 && !(await box.isVisible()); tries += 1) {
      await this.page.mouse.dblclick(x, y);
      await box.waitFor({ timeout: 4000 }).catch(() => null);
    }
    this.count("double");
    await box.fill(word);
    const isFirst = ([options, title]) => [...document.querySelectorAll(options)]
      .find((option) => option.checkVisibility() && option.innerText.trim())?.innerText.includes(title);
    await this.page.waitForFunction(isFirst, [OPTIONS, hit], { timeout: PATIENCE, polling: 50 });
    await this.page.keyboard.press("Enter");
    this.count(null, word.length + 1);
    await box.waitFor({ state: "hidden", timeout: PATIENCE });
    await this.page.waitForFunction((n) => window.drive.count() > n, before, { timeout: PATIENCE });
    await this.putDown(x, y);
    const made = await this.page.evaluate(() => (window.app.rootGraph ?? window.app.graph)._nodes.at(-1).type);
    if (type && made !== type) throw new Error(`"${word}" gave ${made}`);
  }

  // Newer frontends carry a new node below the pointer, by the middle of its title, until a click puts it down.
  async putDown(x, y) {
    const half = await this.page.evaluate(() => {
      const { state, ds, graph } = window.app.canvas;
      return state?.ghostNodeId == null ? null : (graph.getNodeById(state.ghostNodeId).size[0] * ds.scale) / 2;
    });
    if (half === null) return;
    await this.page.mouse.move(x + half, y, { steps: 3 });
    await this.page.mouse.click(x + half, y);
    this.count("click");
  }

  async wire({ from, output, to, input }) {
    const [start, end] = await this.page.evaluate(([a, o, b, i]) => {
      const place = (node, isInput, slots, name) => {
        const index = slots.findIndex((slot) => slot.name === name || slot.type === name);
        const { canvas, ds } = window.app.canvas, box = canvas.getBoundingClientRect();
        const [x, y] = node.getConnectionPos(isInput, index);
        return [box.left + (x + ds.offset[0]) * ds.scale, box.top + (y + ds.offset[1]) * ds.scale];
      };
      const [source, target] = [window.drive.find(a), window.drive.find(b)];
      return [place(source, false, source.outputs, o), place(target, true, target.inputs, i)];
    }, [from, output, to, input]);
    await this.page.mouse.move(...start);
    await this.page.mouse.down();
    await this.page.mouse.move(...end, { steps: 6 });
    await this.page.mouse.up();
    this.count("drag");
    const isMade = ([b, i]) => window.drive.find(b).inputs.some((slot) => (slot.name === i || slot.type === i) && slot.link != null);
    await this.page.waitForFunction(isMade, [to, input], { timeout: PATIENCE / 4 }).catch(() => {
      throw new Error(`no link from ${from}.${output} to ${to}.${input}`);
    });
  }

  async click({ selector, text }) {
    const found = this.page.locator(selector).filter(text === undefined ? {} : { hasText: text }).first();
    await found.click({ timeout: PATIENCE, noWaitAfter: true });
    this.count("click");
  }

  // Until what was clicked has filled the page.
  async settle() {
    await this.page.waitForFunction(() => window.drive.ofClass(/VACESample/).length, null, { timeout: PATIENCE });
    await this.page.locator("[role=dialog]").waitFor({ state: "hidden", timeout: PATIENCE });
  }

  // In place of what is there.
  async write({ node, widget, text }) {
    const [x, y] = await this.page.evaluate(([n, w]) => {
      const box = window.drive.find(n).widgets.find((one) => one.name === w).element.getBoundingClientRect();
      return [box.left + box.width / 2, box.top + box.height / 2];
    }, [node, widget]);
    await this.page.mouse.click(x, y);
    this.count("click");
    await this.page.keyboard.press("ControlOrMeta+A");
    await this.page.keyboard.insertText(text);
    this.count(null, text.length + 1);
  }

  // The request is answered here: what is counted ends with it.
  async run() {
    let sent = null;
    await this.page.route(/\/prompt$/, async (route) => {
      if (route.request().method() !== "POST") return route.continue();
      sent = route.request().postDataJSON();
      return route.fulfill({ json: { prompt_id: "by-hand", number: 1, node_errors: {} } });
    });
    const split = this.page.getByTestId("queue-button");
    const button = split.locator("button").first().or(split.and(this.page.locator("button")));
    await button.or(this.page.getByRole("button", { name: "Run", exact: true })).first().click();
    this.count("click");
    const began = Date.now();
    while (!sent && Date.now() - began < PATIENCE) await this.page.waitForTimeout(20);
    await this.page.unroute(/\/prompt$/);
    if (!sent) throw new Error("Run has sent nothing");
    return sent.prompt;
  }
}

async function by_hand({ page }, { steps }) {
  const hand = new Hand(page), began = performance.now();
  let prompt = null;
  for (const [kind, step] of steps) prompt = (await hand[kind](step ?? {})) ?? prompt;
  const { clicks, keys, person } = hand;
  return { clicks, keys, person, page: (performance.now() - began) / 1000, prompt };
}

export const handActions = { by_hand };
