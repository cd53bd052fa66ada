// A look at a node's frames: scrubbed and played, beside what they were made from, under their mask, or all at once.
import { api } from "../../../scripts/api.js";
import { dialog, element } from "./dom.js";
import { t } from "./i18n.js";

/** @import { Sheets } from "./types" */

const FRAMES_PER_SECOND = 16; // of Wan
const LEAST_WIDTH = 640, MOST_WIDTH = 1600; // pixels of what is drawn; a sheet itself may have many more

/** @param {Sheets} given @param {number} index */
export function placeOf({ columns, width, height }, index) {
  return [(index % columns) * width, Math.floor(index / columns) * height];
}

// The frame at a point of a sheet, null beside them.
/** @param {Sheets} given @param {number} x @param {number} y */
export function frameAt({ columns, width, height, frames }, x, y) {
  const column = Math.floor(x / width), index = Math.floor(y / height) * columns + column;
  return column >= 0 && column < columns && y >= 0 && index < frames.length ? index : null;
}

// A point of the page as shares of a picture that keeps its shape within its box.
/**
 * @param {{ width: number, height: number }} given
 * @param {DOMRect} box
 * @param {{ clientX: number, clientY: number }} given2
 */
export function shareAt({ width, height }, box, { clientX, clientY }) {
  const scale = Math.min(box.width / width, box.height / height);
  return [
    (clientX - box.left - (box.width - width * scale) / 2) / (width * scale),
    (clientY - box.top - (box.height - height * scale) / 2) / (height * scale),
  ];
}

export class Viewer {
  /** @param {Sheets} sheets */
  constructor(sheets, isLarge = false) {
    const { before, mask, frames } = sheets;
    this.sheets = sheets;
    this.index = this.timer = 0;
    this.split = 0.5;
    this.isSheet = false;
    this.isMasked = Boolean(mask && !before);
    this.pictures = { sheet: this.picture(sheets.sheet), before: before ? this.picture(before) : null, mask: mask ? this.picture(mask) : null };
    this.canvas = element("canvas", { onpointermove: (/** @type {PointerEvent} */ event) => this.compare(event), onclick: (/** @type {PointerEvent} */ event) => this.pick(event) });
    this.slider = element("input", { type: "range", min: 0, max: frames.length - 1, oninput: () => this.show(this.slider.valueAsNumber) });
    this.count = element("span", { class: "piying-small" });
    this.player = element("button", { title: t("look.play"), onclick: () => this.play() }, "▶");
    const moves = frames.length > 1;
    // The canvas behind would take the pointer and the arrow keys for its own.
    const stop = (/** @type {Event} */ event) => event.stopPropagation();
    this.box = element(
      "div", { class: "piying-look", onpointerdown: stop, onkeydown: stop },
      element(
        "div", { class: "piying-picture" }, this.canvas,
        before ? element("i", {}, t("look.before")) : null, before ? element("i", {}, t("look.after")) : null,
      ),
      element(
        "div", { class: "piying-row" }, ...(moves ? [this.player, this.slider, this.count] : []),
        mask ? this.toggle("isMasked", "look.mask") : null, moves ? this.toggle("isSheet", "look.sheet") : null,
        isLarge ? null : element("button", { title: t("look.large"), onclick: () => this.enlarge() }, "⤢"),
      ),
    );
    this.draw();
  }

  /** @param {string} name @returns {HTMLImageElement} */
  picture(name) {
    const address = `/view?${new URLSearchParams({ filename: name, type: "temp" })}`;
    return element("img", { src: api.apiURL(address), onload: () => this.draw() });
  }

  /** @param {"isMasked" | "isSheet"} name @param {string} key */
  toggle(name, key) {
    const change = () => {
      this[name] = !this[name];
      button.setAttribute("aria-pressed", String(this[name]));
      this.draw();
    };
    const button = element("button", { "aria-pressed": String(this[name]), onclick: change }, t(key));
    return button;
  }

  /** @param {number} index */
  show(index) {
    this.index = index;
    this.draw();
  }

  play() {
    if (this.timer) return this.pause();
    const { frames, total } = this.sheets;
    this.player.textContent = "⏸";
    this.timer = setInterval(() => {
      if (!this.box.isConnected) this.pause();
      else this.show((this.index + 1) % frames.length);
    }, (1000 / FRAMES_PER_SECOND) * (total / frames.length));
  }

  pause() {
    clearInterval(this.timer);
    this.timer = 0;
    this.player.textContent = "▶";
  }

  /** @param {PointerEvent} event */
  compare(event) {
    if (!this.pictures.before || this.isSheet) return;
    const [x] = shareAt(this.canvas, this.canvas.getBoundingClientRect(), event);
    this.split = Math.min(1, Math.max(0, x));
    this.draw();
  }

  /** @param {PointerEvent} event */
  pick(event) {
    if (!this.isSheet) return;
    const [x, y] = shareAt(this.canvas, this.canvas.getBoundingClientRect(), event);
    const { naturalWidth, naturalHeight } = this.pictures.sheet;
    const index = frameAt(this.sheets, x * naturalWidth, y * naturalHeight);
    if (index !== null) this.show(index);
  }

  enlarge() {
    this.pause();
    dialog(t("look"), t("close"), new Viewer(this.sheets, true).box);
  }

  draw() {
    const { canvas, pictures, sheets, index, split, isSheet } = this;
    const { sheet, before, mask } = pictures;
    const { width, height, frames, total } = sheets;
    this.slider.value = index;
    this.count.textContent = `${frames[index] + 1}/${total}`;
    if (!sheet.naturalWidth) return;
    const [x, y, w, h] = isSheet ? [0, 0, sheet.naturalWidth, sheet.naturalHeight] : [...placeOf(sheets, index), width, height];
    const scale = Math.max(LEAST_WIDTH / w, Math.min(1, MOST_WIDTH / w));
    Object.assign(canvas, { width: Math.round(w * scale), height: Math.round(h * scale) });
    const context = canvas.getContext("2d");
    const put = (/** @type {HTMLImageElement | null} */ image, /** @type {number} */ share) => {
      if (image?.naturalWidth && share > 0) context.drawImage(image, x, y, w * share, h, 0, 0, canvas.width * share, canvas.height);
    };
    put(sheet, 1);
    if (before && !isSheet) {
      put(before, split);
      context.fillStyle = "#fff";
      context.fillRect(canvas.width * split - 1, 0, 2, canvas.height);
    }
    if (this.isMasked) put(mask, 1);
    this.box.classList.toggle("piying-compared", Boolean(before && !isSheet));
  }
}
