/** Pages of a PDF as images, with the cited lines marked. */

import * as api from "./api.js";
import { el } from "./dom.js";

const WIDTH = 1400; // pixels of an image: sharp on a pane of half that width

/**
 * The pages on which a passage is printed.
 * @param {Object} what {document, name, boxes}
 * @returns {Promise<HTMLElement[]>} one a page, in order; throws what the service says when a page cannot be drawn
 */
export async function sheets({ document: id, name, boxes }) {
  const numbers = [...new Set(boxes.map((box) => box.page))];
  return Promise.all(numbers.map(async (number) => {
    const url = URL.createObjectURL(await api.pageImage(id, number, WIDTH));
    const image = el("img", { src: url, alt: `Page ${number} of ${name}` });
    await image.decode();
    URL.revokeObjectURL(url);
    const own = boxes.filter((box) => box.page === number);
    return el("figure", { class: "sheet", "data-page": number },
      el("div", { class: "paper" }, image, ...own.map(box)),
      el("figcaption", {}, `Page ${number}`));
  }));
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
