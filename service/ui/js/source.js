/** The source pane: a document's stored text, scrolled to the cited passage. */

import * as api from "./api.js";
import { byId, el, icon } from "./dom.js";
import { announce } from "./notices.js";
import { mayFlow, paragraphs, unitIndex } from "./text.js";
import { badge } from "./turn.js";

const WINDOW = 120_000; // characters on either side of the passage; more on demand
const KEPT = 4;

export class Source {
  /** @param {Object} on `step(±1)` to the next or previous citation, `opened(documentId or null)`. */
  constructor(on) {
    this.on = on;
    this.texts = new Map(); // document id and version → {text, pages}
    this.shown = null;
    byId("source-text").replaceChildren(blank());
    byId("source-close").addEventListener("click", () => this.close());
  }

  /**
   * Show a document.
   * @param {Object} what {document: id, name, start, end, page, verified}; start and end in code points. Without
   *   them the text is shown from its beginning; without `verified`, no badge.
   */
  async open(what) {
    this.shown = what;
    this.on.opened(what.document);
    byId("source-close").hidden = false;
    this.#facts(what);
    const box = byId("source-text");
    box.replaceChildren(el("p", { class: "empty" }, "Fetching the text…"));
    try {
      const stored = await this.#text(what.document);
      if (this.shown !== what) return; // another one was opened meanwhile
      this.#render(what, stored);
      const page = what.page ? `, page ${what.page}` : "";
      const truth = what.verified === undefined ? "" : what.verified ? ", verified" : ", not verified";
      announce(`Source: ${what.name}${page}${truth}`);
    } catch (error) {
      if (this.shown !== what) return;
      const gone = error.status === 404;
      box.replaceChildren(el("p", { class: "fault" }, el("strong", {}, gone ? "This document is gone" : error.title ?? "The text cannot be shown"),
        gone ? "It was deleted after the answer was given." : error.detail ?? error.message));
    }
  }

  close() {
    this.shown = null;
    byId("source-close").hidden = true;
    byId("source-facts").hidden = true;
    byId("source-text").replaceChildren(blank());
    this.on.opened(null);
  }

  /** Forget a document that was deleted. */
  forget(id) {
    this.texts.delete(id);
    if (this.shown?.document === id) this.close();
  }

  async #text(id) {
    if (!this.texts.has(id)) {
      const [text, about] = await Promise.all([api.documentText(id), api.getDocument(id)]);
      this.texts.set(id, { text, about });
      if (this.texts.size > KEPT) this.texts.delete(this.texts.keys().next().value);
    }
    return this.texts.get(id);
  }

  #facts(what) {
    const facts = byId("source-facts");
    facts.hidden = false;
    const steps = what.number ? el("span", { class: "step" },
      el("button", { type: "button", class: "quiet square", "aria-label": "Previous citation", "aria-keyshortcuts": "[", on: { click: () => this.on.step(-1) } }, "‹"),
      el("button", { type: "button", class: "quiet square", "aria-label": "Next citation", "aria-keyshortcuts": "]", on: { click: () => this.on.step(1) } }, "›")) : null;
    facts.replaceChildren(
      el("p", { class: "source-name" }, what.name),
      el("p", { class: "source-meta" },
        what.number ? el("span", {}, `Citation ${what.number}`) : null,
        what.page ? el("span", {}, `Page ${what.page}`) : null,
        what.verified === undefined ? null : badge(what.verified),
        steps));
  }

  #render(what, { text, about }) {
    const index = unitIndex(text);
    const cited = what.end > what.start ? [index(what.start), index(what.end)] : null;
    const centre = cited ? cited[0] : 0;
    const range = { from: lineStart(text, centre - WINDOW), to: lineStart(text, (cited ? cited[1] : 0) + WINDOW, true) };
    const box = byId("source-text");
    const body = el("div");
    const fill = () => {
      const pages = (about.page_offsets ?? []).map((page) => ({ number: page.number, at: index(page.start) }));
      body.replaceChildren(...blocks(text, range, cited, pages));
      earlier.hidden = range.from === 0;
      later.hidden = range.to === text.length;
    };
    const earlier = el("button", { type: "button", class: "quiet", on: { click: () => { range.from = lineStart(text, range.from - WINDOW); fill(); } } }, "Show earlier text");
    const later = el("button", { type: "button", class: "quiet", on: { click: () => { range.to = lineStart(text, range.to + WINDOW, true); fill(); } } }, "Show later text");
    fill();
    box.replaceChildren(earlier, body, later);
    if (!text) body.append(el("p", { class: "empty" }, "This document holds no text."));
    const mark = box.querySelector("mark");
    if (!mark) box.scrollTop = 0;
    else {
      mark.scrollIntoView({ block: "center" });
      // Paragraphs out of sight have estimated heights until they are near: aim once more when they are known.
      requestAnimationFrame(() => mark.scrollIntoView({ block: "center" }));
    }
  }
}

function blank() {
  return el("div", { class: "blank" }, icon("source"), el("p", {}, "Open a citation or a document to see its text here."));
}

/** Paragraphs of a range, with page marks before the pages that begin in it, and the cited part marked. */
function blocks(text, { from, to }, cited, pages) {
  const breaks = pages.length > 1 ? pages.filter(({ at }) => at >= from && at < to) : [];
  const edges = [from, ...breaks.map(({ at }) => at).filter((at) => at > from), to];
  const nodes = [];
  for (let i = 0; i < edges.length - 1; i += 1) {
    const page = breaks.find(({ at }) => at === edges[i]);
    if (page) nodes.push(el("div", { class: "page-mark" }, `Page ${page.number}`));
    for (const [start, end] of paragraphs(text, edges[i], edges[i + 1])) nodes.push(paragraph(text, start, end, cited));
  }
  return nodes;
}

function paragraph(text, start, end, cited) {
  const lines = mayFlow(text.slice(start, end)) ? "flow" : "kept";
  const last = start + text.slice(start, end).trimEnd().length; // blank lines are the margin's work
  if (!cited || cited[1] <= start || cited[0] >= last) return el("p", { class: "paragraph", "data-lines": lines }, text.slice(start, last));
  const [first, stop] = [Math.max(start, cited[0]), Math.min(cited[1] < end ? Math.max(last, cited[1]) : end, cited[1])];
  return el("p", { class: "paragraph", "data-lines": lines },
    text.slice(start, first), el("mark", {}, text.slice(first, stop)), text.slice(stop, Math.max(last, stop)));
}

/** The start of the line at an index, or with `after` its end; within the text. */
function lineStart(text, at, after = false) {
  if (at <= 0) return 0;
  if (at >= text.length) return text.length;
  const found = after ? text.indexOf("\n", at) : text.lastIndexOf("\n", at) + 1;
  return found < 0 ? text.length : found;
}
