/** What a document is about, found when it is asked for: a summary, and questions that it answers. */

import * as api from "./api.js";
import { el, refill } from "./dom.js";
import { announce, report } from "./notices.js";
import { badge } from "./turn.js";

/**
 * A button for each.
 * @param {string} id of the document
 * @param {Object} on `ask(question)`: one that is chosen; `open(citation)` shows where a sentence stands
 */
export function overview(id, on) {
  return el("div", { class: "overview" },
    onDemand("Summary", "Reading…", () => summary(id, on.open)),
    onDemand("Questions it answers", "Asking…", () => questions(id, on.ask)));
}

async function summary(id, open) {
  const found = await api.summaryOf(id);
  const sentences = found.claims.map((claim, number) => {
    const [citation] = found.citations.filter((one) => one.claim === number);
    return el("li", {},
      el("button", { type: "button", class: "quiet", on: { click: () => open(citation) } }, claim.text),
      claim.support === "verbatim" ? null : badge(citation));
  });
  const part = found.read_chars < found.chars ? `${Math.round((100 * found.read_chars) / found.chars)}% of the text, from all over it, was looked at.` : "";
  const less = found.left_out ? `Left out for want of support: ${found.left_out} of the model's sentences.` : "";
  return [
    el("h3", {}, "Summary"),
    sentences.length ? el("ol", { "aria-label": "Summary" }, ...sentences) : null,
    ...[found.note, less, part].filter(Boolean).map((said) => el("p", { class: "note" }, said)),
  ];
}

async function questions(id, ask) {
  const found = (await api.suggestedQuestions(id)).questions;
  if (!found.length) return [el("p", { class: "note" }, "No question was found whose answer could be verified.")];
  return [el("h3", {}, "Questions it answers"), el("ul", { "aria-label": "Questions it answers" }, ...found.map(({ question }) =>
    el("li", {}, el("button", { type: "button", class: "quiet", on: { click: () => ask(question) } }, question))))];
}

/** A button that becomes what `find` gives; the focus goes to the first thing in it that can be chosen. */
function onDemand(label, meanwhile, find) {
  const box = el("div", { tabindex: "-1" });
  const button = el("button", { type: "button", class: "quiet", on: { click: become } }, label);
  box.append(button);

  async function become() {
    button.setAttribute("aria-disabled", "true"); // and keeps the focus meanwhile
    button.textContent = meanwhile;
    button.removeEventListener("click", become);
    announce(`${label}: ${meanwhile}`);
    try {
      const nodes = (await find()).filter(Boolean);
      const had = box.contains(document.activeElement);
      refill(box, ...nodes);
      announce(nodes.map((node) => node.textContent).join(" "));
      if (had) (box.querySelector("button") ?? box).focus();
    } catch (error) {
      button.removeAttribute("aria-disabled");
      button.textContent = label;
      button.addEventListener("click", become);
      report(error);
    }
  }
  return box;
}
