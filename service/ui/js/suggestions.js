/** Questions that a document answers, found when they are asked for. */

import * as api from "./api.js";
import { el, refill } from "./dom.js";
import { announce, report } from "./notices.js";

/**
 * A button that becomes the questions.
 * @param {string} id of the document
 * @param {Function} ask is given the question that is chosen
 */
export function suggestions(id, ask) {
  const box = el("div", { class: "suggested" });
  const button = el("button", { type: "button", class: "quiet", on: { click: find } }, "Questions it answers");
  box.append(button);

  async function find() {
    button.disabled = true;
    button.textContent = "Asking…";
    announce("Questions are tried.");
    try {
      const { questions } = await api.suggestedQuestions(id);
      announce(questions.length ? "Questions are there." : "No question was found.");
      if (!questions.length) refill(box, el("p", { class: "empty" }, "None was found whose answer could be verified."));
      else refill(box, el("ul", { "aria-label": "Questions it answers" }, ...questions.map(({ question }) =>
        el("li", {}, el("button", { type: "button", class: "quiet", on: { click: () => ask(question) } }, question)))));
      box.querySelector("button")?.focus();
    } catch (error) {
      button.disabled = false;
      button.textContent = "Questions it answers";
      report(error);
    }
  }
  return box;
}
