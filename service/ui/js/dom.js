/** Elements from plain data. Data is only ever set as text or attribute, never parsed as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** The element with that id; a missing one is a mistake in the page. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element #${id}`);
  return found;
}

/**
 * Make an element.
 * @param {string} tag
 * @param {Object} props `on` ({event: listener}) and attributes by name; null leaves one out.
 * @param {...(Node|string|null)} children strings become text nodes.
 */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (typeof value !== "boolean" || /^(data|aria)-/.test(name)) node.setAttribute(name, String(value));
    else node.toggleAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** Give a node other children; the control that had the focus, or one that looks the same, has it still. */
export function refill(node, ...children) {
  const had = node.contains(document.activeElement) ? document.activeElement : null;
  node.replaceChildren(...children);
  if (had && !had.isConnected) {
    const same = [...node.querySelectorAll(had.tagName)].find((each) => each.className === had.className && each.textContent === had.textContent);
    same?.focus({ preventScroll: true });
  }
}

/** A drawing of the sprite, hidden from screen readers: the words beside it speak. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", new URL(`../icons.svg#${name}`, import.meta.url).href);
  svg.append(use);
  return svg;
}

/** "1 page", "3 pages". */
export function count(number, word) {
  return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
}
