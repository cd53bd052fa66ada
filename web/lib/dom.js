// DOM helpers. Text is always inserted as text, never as HTML.
/**
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | undefined)} children
 * @returns {any}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/**
 * @param {string} title
 * @param {string} closeText
 * @param {...(Node | string | null | undefined)} children
 * @returns {HTMLDialogElement}
 */
export function dialog(title, closeText, ...children) {
  const made = element(
    "dialog", { class: "piying-dialog" },
    element("header", {}, element("h3", {}, title), element("button", { onclick: () => made.close() }, closeText)),
    ...children,
  );
  made.addEventListener("close", () => made.remove());
  // The backdrop counts as the dialog itself; its contents are elements of their own, but for its padding.
  made.addEventListener("click", (/** @type {MouseEvent} */ { target, clientX: x, clientY: y }) => {
    const { left, right, top, bottom } = made.getBoundingClientRect();
    if (target === made && (x < left || x > right || y < top || y > bottom)) made.close();
  });
  // ComfyUI's own shortcuts, such as Escape, would act on the canvas behind.
  made.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => event.stopPropagation());
  document.body.append(made);
  made.showModal();
  return made;
}
