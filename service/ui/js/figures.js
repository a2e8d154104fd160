/** The figures of an answer, at the foot of the page. */

import { byId, el } from "./dom.js";

const FOLD = "folio.figures";
const whole = (value) => Math.round(value).toLocaleString("en");
const seconds = (value) => (value < 9.95 ? value.toFixed(2) : value.toFixed(1));

/** Let the line of the most telling figures show and hide the others. */
export function wireFigures() {
  const [fold, list] = [byId("figures-fold"), byId("figure-list")];
  const show = (on) => {
    list.hidden = !on;
    fold.setAttribute("aria-expanded", String(on));
  };
  show(localStorage.getItem(FOLD) === "open");
  fold.addEventListener("click", () => {
    show(list.hidden);
    localStorage.setItem(FOLD, list.hidden ? "" : "open");
  });
}

function summary(stats) {
  if (!stats) return "Figures of the answer will stand here.";
  const parts = [`${whole(stats.prompt_tokens)} tokens read`];
  if (stats.ttft_s) parts.push(`first word after ${seconds(stats.ttft_s)} s`);
  if (stats.decode_tokens_per_s) parts.push(`${whole(stats.decode_tokens_per_s)} tokens/s`);
  return parts.join(" · ");
}

/** Show the figures of one answer; null clears them. */
export function showFigures(stats) {
  const list = byId("figure-list");
  byId("figures-fold").textContent = summary(stats);
  byId("figures-fold").disabled = !stats;
  if (!stats) {
    list.replaceChildren();
    return;
  }
  const cached = stats.cached_tokens ? ` · ${whole(stats.cached_tokens)} cached` : "";
  const figures = [
    ["First token", stats.ttft_s, seconds, "s", "Time from the question to the first token, retrieval included"],
    ["Speed", stats.decode_tokens_per_s, (v) => v.toFixed(v < 100 ? 1 : 0), "tokens/s", "Tokens a second after the first"],
    ["Prompt", stats.prompt_tokens, whole, `tokens${cached}`, "Length of the prompt; cached tokens were read before"],
    ["Answer", stats.output_tokens, whole, "tokens", "Length of the answer"],
    ["Retrieval", stats.retrieval_ms, (v) => (v < 10 ? v.toFixed(1) : whole(v)), "ms", "Time to find the passages"],
    ["Acceptance", stats.acceptance_rate, (v) => whole(v * 100), "%", "Drafted tokens that the model would have chosen itself"],
    ["Accepted length", stats.accepted_length, (v) => v.toFixed(2), "tokens/step", "Tokens that one step brings, its own included"],
  ];
  list.replaceChildren(...figures.map(([name, value, format, unit, title]) => {
    const known = value !== null && value !== undefined;
    return el("div", { class: "figure", title },
      el("dt", {}, name),
      el("dd", {}, known ? format(value) : "–", known ? el("small", {}, unit === "%" ? " %" : ` ${unit}`) : null));
  }));
}
