/** A page of a PDF as an image, with the cited lines marked. */

import * as api from "./api.js";
import { el } from "./dom.js";

const WIDTH = 1400; // pixels of an image: sharp on a pane of half that width
const SHARP_WIDTH = 2000; // the most that the service draws

/**
 * One page.
 * @param {string} id of the document
 * @param {Object[]} boxes of any of its pages
 * @param {boolean} sharp whether it is shown larger than the pane is wide
 * @returns {Promise<HTMLElement>} throws what the service says when it cannot be drawn
 */
export async function sheet(id, name, number, boxes, sharp) {
  const url = URL.createObjectURL(await api.pageImage(id, number, sharp ? SHARP_WIDTH : WIDTH));
  const image = el("img", { src: url, alt: `Page ${number} of ${name}` });
  await image.decode();
  URL.revokeObjectURL(url);
  const own = boxes.filter((box) => box.page === number);
  return el("figure", { class: "sheet", "data-page": number },
    el("div", { class: "paper" }, image, ...own.map(box)),
    el("figcaption", {}, `Page ${number}`));
}

/** A mark over one line; shares of the page, so that it fits at any size. */
function box({ left, bottom, right, top, page_width: width, page_height: height }) {
  const mark = el("span", { class: "box" });
  const share = (value, whole) => `${(100 * value) / whole}%`;
  Object.assign(mark.style, {
    left: share(left, width), top: share(height - top, height), width: share(right - left, width), height: share(top - bottom, height),
  });
  return mark;
}
