/** The source pane: the cited passage marked in a document's stored text, or on the pages of a PDF. */

import * as api from "./api.js";
import { byId, el, icon } from "./dom.js";
import { announce, report } from "./notices.js";
import { overview } from "./overview.js";
import { paragraphs, softBreaks, unitIndex } from "./text.js";
import { badge } from "./turn.js";
import { Viewer } from "./viewer.js";

const WINDOW = 40_000; // characters fetched on either side of the passage, and at each "Show more"

export class Source {
  /**
   * @param {Object} on `step(±1)` to the next or previous citation, `opened(documentId or null)`, `ask(question,
   *   documentId)`: one that was suggested, `open(what)` shows what a summary names.
   */
  constructor(on) {
    this.on = on;
    this.shown = null;
    this.opener = null; // what had the focus before; it gets it back
    this.part = null; // {from, text, more}: the characters that are shown, and whether others follow
    this.viewer = null; // of its pages, where these are shown
    byId("source-text").replaceChildren(blank());
    byId("source-close").addEventListener("click", () => this.close());
  }

  /**
   * Show a document.
   * @param {Object} what {document: id, name, start, end, place, cited_text, verified, support, number, boxes}; offsets in code
   *   points. Without them the text is shown from its beginning; without `verified`, no badge; with `boxes`, the
   *   pages of a PDF before the text; with `media_type`, its pages beside the text; `overview`: the node that named it.
   */
  async open(what) {
    if (!this.#inside(document.activeElement)) this.opener = document.activeElement;
    this.shown = what;
    this.viewer = null;
    this.on.opened(what.document);
    byId("source-close").hidden = false;
    this.#facts(what, what.verified);
    const box = byId("source-text");
    box.replaceChildren(el("p", { class: "empty" }, "Fetching the text…"));
    try {
      const from = Math.max(0, (what.start ?? 0) - WINDOW);
      const part = await fetchPart(what.document, from, (what.end ?? 0) + WINDOW);
      if (this.shown !== what) return; // another one was opened meanwhile
      this.part = part;
      const same = this.#check(what);
      await this.#view(same && what.boxes?.length ? "page" : "text");
      if (this.shown !== what) return;
      const place = what.place ? `, ${what.place}` : "";
      const truth = what.verified === undefined ? "" : what.verified ? `, ${what.support}` : ", not verified";
      announce(`Source: ${what.name}${place}${truth}`);
    } catch (error) {
      if (this.shown !== what) return;
      const gone = error.status === 404;
      box.replaceChildren(el("p", { class: "fault" },
        el("strong", {}, gone ? "This document is gone" : error.title ?? "The text cannot be shown"),
        gone ? "It was deleted after the answer was given." : error.detail ?? error.message));
    }
  }

  close() {
    const inside = this.#inside(document.activeElement);
    this.shown = null;
    this.viewer = null;
    byId("source-close").hidden = true;
    byId("source-facts").hidden = true;
    byId("source-text").replaceChildren(blank());
    this.on.opened(null);
    if (inside) (this.opener?.isConnected ? this.opener : byId("question")).focus();
  }

  /** A document was deleted. */
  forget(id) {
    if (this.shown?.document === id) this.close();
  }

  /** Show its pages larger (1), smaller (-1), or as wide as the pane (0). */
  zoom(by) {
    this.viewer?.zoom(by);
  }

  #inside(node) {
    return byId("source").contains(node);
  }

  #facts(what, verified) {
    const facts = byId("source-facts");
    const focused = document.activeElement;
    const paged = what.boxes?.length ? verified : what.media_type === "application/pdf";
    facts.hidden = false;
    const step = (by, label, keys, sign) => el("button", { type: "button", class: "quiet square", "aria-label": label, "aria-keyshortcuts": keys, on: { click: () => this.on.step(by) } }, sign);
    facts.replaceChildren(
      el("p", { class: "source-name" }, what.name),
      el("p", { class: "source-meta" },
        what.number ? el("span", {}, `Citation ${what.number}`) : null,
        what.place ? el("span", { class: "place" }, what.place) : null,
        verified === undefined ? null : badge({ verified, support: what.support }),
        paged ? el("span", { class: "views" }, this.#choice("page", "Page"), this.#choice("text", "Text")) : null,
        what.number ? el("span", { class: "step" }, step(-1, "Previous citation", "[", "‹"), step(1, "Next citation", "]", "›")) : null),
      what.overview ?? (what.start === undefined ? this.#overview(what) : ""));
    if (facts.contains(focused)) focused.focus();
  }

  /** Of a document; it stays while the sentences that it names are looked at. */
  #overview(what) {
    const { document: id, name, media_type } = what;
    const node = overview(id, {
      ask: (question) => this.on.ask(question, id),
      open: (citation) => this.on.open({ ...citation, name, media_type, overview: node }),
    });
    return node;
  }

  #choice(name, label) {
    return el("button", { type: "button", class: "quiet", "data-view": name, "aria-pressed": false, on: { click: () => this.#view(name).catch(report) } }, label);
  }

  /** Show the passage on its "page" or in the "text". */
  async #view(name) {
    const { shown } = this;
    for (const button of byId("source-facts").querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", String(button.dataset.view === name));
    this.viewer = null;
    if (name === "page") {
      const viewer = await new Viewer(shown).load();
      if (this.shown !== shown) return;
      this.viewer = viewer;
      byId("source-text").replaceChildren(viewer.node);
    } else {
      this.#render();
    }
    this.#aim();
  }

  /**
   * Whether the cited words stand there: a new version of the document may have taken the place of the one that was
   * cited.
   */
  #check(what) {
    const { from, text } = this.part;
    const index = unitIndex(text);
    const now = text.slice(index(what.start - from), index(what.end - from));
    const same = what.cited_text === undefined || now === what.cited_text;
    if (what.verified && !same) this.#facts(what, false);
    return same;
  }

  #render() {
    const { from, text, more } = this.part;
    const { start, end } = this.shown;
    const index = unitIndex(text);
    const cited = end > start ? [index(start - from), index(end - from)] : null;
    const nodes = paragraphs(text).map(([first, last]) => paragraph(text, first, last, cited));
    byId("source-text").replaceChildren(...[
      from > 0 ? el("button", { type: "button", class: "quiet", on: { click: () => this.#extend(-1).catch(report) } }, "Show earlier text") : null,
      ...nodes,
      text ? null : el("p", { class: "empty" }, "This document holds no text."),
      more ? el("button", { type: "button", class: "quiet", on: { click: () => this.#extend(1).catch(report) } }, "Show later text") : null,
    ].filter(Boolean));
  }

  /** Fetch more text before or after what is shown, and keep the eye where it is. */
  async #extend(direction) {
    const { part, shown } = this;
    const box = byId("source-text");
    const to = part.from + lengthOf(part.text);
    const added = await (direction < 0 ? fetchPart(shown.document, Math.max(0, part.from - WINDOW), part.from) : fetchPart(shown.document, to, to + WINDOW));
    if (this.shown !== shown) return;
    const below = box.scrollHeight - box.scrollTop;
    this.part = direction < 0 ? { from: added.from, text: added.text + part.text, more: part.more } : { ...part, text: part.text + added.text, more: added.more };
    this.#render();
    if (direction < 0) box.scrollTop = box.scrollHeight - below;
  }

  /** Scroll to the mark. Paragraphs out of sight have estimated heights until they come near: aim twice. */
  #aim() {
    const box = byId("source-text");
    const mark = box.querySelector("mark, .box");
    box.scrollTop = 0;
    mark?.scrollIntoView({ block: "center" });
    requestAnimationFrame(() => mark?.scrollIntoView({ block: "center" }));
  }
}

async function fetchPart(id, from, to) {
  const text = await api.documentText(id, from, to);
  return { from, text, more: lengthOf(text) === to - from };
}

/** Length in code points, as the service counts. */
function lengthOf(text) {
  let length = 0;
  for (const _ of text) length += 1;
  return length;
}

function blank() {
  return el("div", { class: "blank" }, icon("source"), el("p", {}, "Open a citation or a document to see its text here."));
}

/** A paragraph with its cited part marked; the blank lines after it are the margin's work. */
function paragraph(text, start, end, cited) {
  const own = text.slice(start, end);
  const last = own.trimEnd().length;
  const first = cited ? Math.max(0, cited[0] - start) : end;
  const stop = cited ? Math.min(own.length, cited[1] - start) : 0;
  const breaks = softBreaks(own);
  if (first >= stop) return el("p", { class: "paragraph" }, ...lines(own, 0, last, breaks));
  return el("p", { class: "paragraph" },
    ...lines(own, 0, first, breaks),
    el("mark", {}, ...lines(own, first, stop, breaks)),
    ...lines(own, stop, Math.max(last, stop), breaks));
}

/** Characters start to end, unchanged, but soft line breaks are shown as spaces. */
function lines(text, start, end, breaks) {
  const nodes = [];
  let at = start;
  for (const [from, to] of breaks) {
    if (from < start || to > end) continue;
    nodes.push(text.slice(at, from), el("span", { class: "soft" }, text.slice(from, to)));
    at = to;
  }
  return [...nodes, text.slice(at, end)];
}
