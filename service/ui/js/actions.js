/** What can be done with an answer that is there: copy it with its citations, ask again, change the question. */

import { el, icon } from "./dom.js";
import { announce, report } from "./notices.js";
import { numbered, pieces } from "./pieces.js";

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
 * @param {{retry: Function, edit: Function}|null} again functions of the turn; null where others follow it
 */
export function actions(turn, again) {
  const button = (name, label, click) => el("button", { type: "button", class: "quiet", on: { click } }, icon(name), label);
  return el("div", { class: "actions", role: "group", "aria-label": "This answer" },
    turn.text && navigator.clipboard ? button("copy", "Copy", () => copy(turn)) : null,
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
