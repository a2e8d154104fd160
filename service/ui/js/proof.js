/** What stands behind "not in the documents": what was read, what was searched, what came nearest and why it did not do. */

import { count, el, icon } from "./dom.js";

/**
 * @param {Object} proof as the service gives it
 * @param {{openResult: Function, wider: Function|null}} how `wider()` asks again; null where others follow
 */
export function proofNodes(proof, how) {
  const lines = [];
  if (proof.read_whole.length) lines.push(el("li", {}, `Read whole: ${proof.read_whole.map((one) => one.name).join(", ")}`));
  for (const { query, passages } of proof.searches) lines.push(el("li", {}, `Searched for “${query}”: ${count(passages, "passage")}`));
  return el("details", { class: "proof", open: true },
    el("summary", {}, "What was looked at"),
    el("ul", {}, ...lines),
    proof.considered.length ? el("p", { class: "nearest" }, "The nearest passages:") : null,
    el("ol", {}, ...proof.considered.map((one) => el("li", {},
      el("button", { type: "button", class: "quiet", on: { click: () => how.openResult(one) } }, `${one.name}${one.place ? ` · ${one.place}` : ""}`),
      el("q", {}, one.sentence),
      el("small", {}, one.why)))),
    proof.wider && how.wider ? el("button", { type: "button", class: "quiet", on: { click: how.wider } }, icon("again"), label(proof.wider)) : null);
}

function label(wider) {
  return "documents" in wider ? "Search all documents" : "Search wider";
}

/** The request that searches wider. */
export function widened(request, wider) {
  const merged = { ...request, ...wider };
  if (!merged.documents?.length) delete merged.documents;
  if (!merged.collection) delete merged.collection;
  return merged;
}
