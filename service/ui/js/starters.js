/** Questions for a visitor who does not know yet what to ask. */

import { byId, el } from "./dom.js";

/** The handbook's chapters answer these; they are offered only where it is among the documents. */
const HANDBOOK = {
  "02-paged-kv.md": "What is a page of KV?",
  "03-sparse-prefill.md": "What is a length gate?",
  "04-streaming-heads-and-page-selection.md": "What is a streaming head?",
};
const STEPS = ["Add documents: text, Markdown, HTML, PDF or office files.", "Ask in your own words.", "Open a citation to check it in the text."];

/** Offer questions, or say how to begin. `suggest` puts a question into the composer. */
export function showStarters(documents, suggest) {
  const questions = documents.map((document) => HANDBOOK[document.name]).filter(Boolean);
  const entries = questions.length
    ? questions.map((words) => el("li", {}, el("button", { type: "button", on: { click: () => suggest(words) } }, words)))
    : STEPS.map((words, i) => el("li", { class: "step" }, el("b", {}, `${i + 1}`), words));
  byId("suggestions").replaceChildren(...entries);
}
