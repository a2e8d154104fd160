/** What can be done with an answer: copy it with its citations, prove it, ask again, change the question. */

import * as api from "./api.js";
import { el, icon } from "./dom.js";
import { announce, report } from "./notices.js";
import { numbered, pieces } from "./pieces.js";
import { watchTurn } from "./watches.js";

/** The answer as plain text, its citations numbered in brackets, and where each of them stands. */
export function withCitations(turn) {
  const { list } = numbered(turn.citations);
  const text = pieces(turn).map((piece) => piece.text + piece.chips.map((number) => `[${number}]`).join("")).join("").trim();
  const notes = list.map((citation, i) => {
    const place = citation.place ? `, ${citation.place}` : "";
    const doubt = citation.verified ? "" : " (not verified)";
    return `[${i + 1}] ${citation.name || citation.document}${place}: “${citation.cited_text.replace(/\s+/g, " ").trim()}”${doubt}`;
  });
  return [text, ...(notes.length ? ["", ...notes] : [])].join("\n");
}

/**
 * Buttons below an answer.
 * @param {Object} turn
 * @param {{retry: Function, edit: Function, wider: Function}|null} again of the turn; null where others follow it
 * @param {Function} redraw shows the turn again
 */
export function actions(turn, again, redraw) {
  const button = (name, label, click) => el("button", { type: "button", class: "quiet", on: { click } }, icon(name), label);
  return el("div", { class: "actions", role: "group", "aria-label": "This answer" },
    turn.text && navigator.clipboard ? button("copy", "Copy", () => copy(turn)) : null,
    turn.receipt ? button("check", "Verify", () => verify(turn, redraw)) : null,
    turn.receipt ? button("document", "Receipt", () => download("receipt.json", JSON.stringify(turn.receipt, null, 1), "application/json")) : null,
    turn.text && !turn.error ? button("focus", "Watch", () => watchTurn(turn)) : null,
    again ? button("again", "Ask again", () => again.retry(turn)) : null,
    again ? button("edit", "Edit question", () => again.edit(turn)) : null);
}

async function copy(turn) {
  try {
    await navigator.clipboard.writeText(withCitations(turn));
    announce("The answer is copied, with its citations.");
  } catch (error) {
    report({ title: "The answer cannot be copied", detail: error.message });
  }
}

async function verify(turn, redraw) {
  announce("The answer is made again.");
  try {
    turn.verdict = (await api.verifyReceipt(turn.receipt)).says;
    announce(turn.verdict);
  } catch (error) {
    report(error);
  }
  redraw();
}

/** Give the reader a file. */
export function download(name, content, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  el("a", { href: url, download: name }).click();
  URL.revokeObjectURL(url);
}
