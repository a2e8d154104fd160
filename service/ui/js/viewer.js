/** The pages of a PDF: a strip of small ones to choose from, and those that are read, as large as one likes. */

import * as api from "./api.js";
import { el } from "./dom.js";
import { announce, report } from "./notices.js";
import { sheet } from "./sheet.js";

const SIZES = [0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4]; // times as wide as the pane
const THUMB_WIDTH = 120; // pixels of an image

export class Viewer {
  /** @param {Object} what {document: id, name, boxes}; the pages with boxes are shown first, else the first page. */
  constructor({ document: id, name, boxes = [] }) {
    this.id = id;
    this.name = name;
    this.boxes = boxes;
    this.size = 1;
    this.numbers = boxes.length ? [...new Set(boxes.map((box) => box.page))] : [1];
    this.sheets = el("div", { class: "sheets", tabindex: 0, role: "group", "aria-label": "Page" });
    this.strip = el("nav", { class: "thumbs", "aria-label": "Pages", on: { keydown: (event) => this.#walk(event) } });
    this.shownSize = el("output", { "aria-label": "Size" }, "100%");
    const act = (label, sign, keys, change) => el("button", { type: "button", class: "quiet square", "aria-label": label, title: label, "aria-keyshortcuts": keys, on: { click: change } }, sign);
    this.node = el("div", { class: "viewer" },
      el("div", { class: "viewer-bar" },
        el("div", { class: "zoom", role: "group", "aria-label": "Zoom" },
          act("Smaller", "−", "-", () => this.zoom(-1)), this.shownSize, act("Larger", "+", "+", () => this.zoom(1)), act("As wide as the pane", "↔", "0", () => this.zoom(0))),
        this.strip),
      this.sheets);
  }

  /** Fetch what is shown first; throws what the service says when it cannot be drawn. */
  async load() {
    const { pages } = await api.getDocument(this.id);
    const fetched = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        fetched.unobserve(target);
        this.#thumb(target);
      }
    }, { rootMargin: "0px 300px" });
    for (let number = 1; number <= pages; number += 1) {
      const button = el("button", { type: "button", class: "quiet", "data-page": number, "aria-label": `Page ${number}`, tabindex: -1, on: { click: () => this.show(number).catch(report) } }, el("small", {}, String(number)));
      this.strip.append(button);
      fetched.observe(button);
    }
    this.strip.hidden = pages < 2;
    await this.#draw(this.numbers);
    return this;
  }

  /** Read another page. */
  async show(number) {
    await this.#draw([number]);
    announce(`Page ${number} of ${this.strip.children.length}`);
  }

  /** One step larger (1) or smaller (-1), or as wide as the pane (0). */
  zoom(by) {
    const at = SIZES.indexOf(this.size) + by;
    this.size = by ? SIZES[Math.min(Math.max(at, 0), SIZES.length - 1)] : 1;
    this.sheets.style.setProperty("--size", this.size);
    this.shownSize.textContent = `${Math.round(100 * this.size)}%`;
    announce(this.shownSize.textContent);
    if (this.size > 1 && !this.sharp) this.#draw(this.numbers).catch(report);
  }

  async #draw(numbers) {
    this.numbers = numbers;
    const sharp = this.size > 1;
    const sheets = await Promise.all(numbers.map((number) => sheet(this.id, this.name, number, this.boxes, sharp)));
    if (this.numbers !== numbers) return; // another page was chosen meanwhile
    this.sharp = sharp;
    this.sheets.replaceChildren(...sheets);
    for (const button of this.strip.children) {
      const shown = numbers.includes(Number(button.dataset.page));
      if (shown) button.setAttribute("aria-current", "page");
      else button.removeAttribute("aria-current");
      button.tabIndex = Number(button.dataset.page) === numbers[0] ? 0 : -1; // one stop of Tab, arrows from there on
    }
    const current = this.strip.children[numbers[0] - 1];
    if (current) this.strip.scrollLeft = current.offsetLeft - (this.strip.clientWidth - current.offsetWidth) / 2;
  }

  #walk(event) {
    const buttons = [...this.strip.children];
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined || !buttons[to]) return;
    event.preventDefault();
    buttons[to].focus();
    this.show(to + 1).catch(report);
  }

  async #thumb(button) {
    const number = button.dataset.page;
    try {
      const url = URL.createObjectURL(await api.pageImage(this.id, number, THUMB_WIDTH));
      const image = el("img", { src: url, alt: "" });
      await image.decode();
      URL.revokeObjectURL(url);
      button.prepend(image);
    } catch {
      button.dataset.bare = "true"; // its number alone; the page itself says what is wrong
    }
  }
}
