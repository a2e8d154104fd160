/** One question and its answer: what is known of it, and how it looks. */

import { actions } from "./actions.js";
import * as api from "./api.js";
import { count, el, icon } from "./dom.js";
import { numbered, pieces } from "./pieces.js";
import { proofNodes } from "./proof.js";

const COLOURS = 8;
const TARGET = "target";
const SUPPORT = {
  verbatim: "These words stand in the stored text, whole",
  attributed: "The stored text says this in other words: every number, name, date and negation is there",
  none: "Nothing in the passages supports this",
};
const ENDS = {
  length: "The answer was cut at its longest allowed length.",
  abort: "The answer was stopped.",
};

/** What is known of a turn before its first event; plain data, so that a reload can bring it back. */
export function newTurn(question, request) {
  return {
    question, request, fresh: false, state: "running", mode: "", reason: "", query: null, results: [], text: "", runs: [], citations: [],
    refused: false, claims: [], note: null, stats: null, error: null, finish: null, proof: null, receipt: null, verdict: null,
  };
}

/**
 * Run a turn to its end; `changed()` is called after every event. Never throws: failures are part of the turn.
 * @param {Object[]} history earlier turns, as the service takes them
 */
export async function run(turn, history, signal, changed) {
  try {
    for await (const { type, data } of api.answer({ ...turn.request, history }, signal)) {
      take(turn, type, data);
      changed(type);
    }
    if (turn.state === "running") fail(turn, "The answer broke off", "The service closed the stream before the answer was done.");
  } catch (error) {
    if (signal.aborted) turn.state = "stopped";
    else fail(turn, error.title ?? "The answer broke off", error.detail ?? "The connection was lost.");
  }
  changed("end");
}

function take(turn, type, data) {
  if (type === "search_results") {
    Object.assign(turn, { mode: data.mode, reason: data.mode_reason ?? "", query: data.query ?? null, results: data.results ?? [] });
  } else if (type === "message") {
    turn.text += data.text;
    turn.runs.push(...(data.tokens ?? [{ text: data.text, source: TARGET }]));
  } else if (type === "citation") {
    turn.citations.push(data);
  } else if (type === "stats") {
    turn.stats = data;
  } else if (type === "receipt") {
    turn.receipt = data;
  } else if (type === "error") {
    fail(turn, data.title ?? "The answer failed", data.detail ?? "");
  } else if (type === "done") {
    turn.text = data.answer ?? turn.text;
    turn.refused = data.refused ?? false;
    turn.mode = data.mode ?? turn.mode;
    turn.reason = data.mode_reason ?? turn.reason;
    turn.claims = data.claims ?? [];
    turn.note = data.note ?? null;
    turn.proof = data.proof ?? null;
    turn.finish = data.finish_reason ?? null;
    if (turn.state === "running") turn.state = "done";
  }
}

function fail(turn, title, detail) {
  turn.state = "failed";
  turn.error = { title, detail };
}

/** Sources of the answer's tokens, in order of first use; the target's own choices are none. */
export function draftSources(turn) {
  return [...new Set(turn.runs.map((run) => run.source))].filter((source) => source && source !== TARGET);
}

/**
 * The turn as it stands.
 * @param {Object} turn
 * @param {{coloured: boolean, openCitation: Function, openResult: Function, redraw: Function, again: Object|null}} how
 */
export function render(turn, how) {
  const running = turn.state === "running";
  const { list } = numbered(turn.citations);
  const open = (number) => how.openCitation(turn, list[number - 1], number);
  return [
    el("h3", { class: "asked" }, turn.question),
    howLine(turn),
    el("div", { class: running ? "answer running" : "answer", "aria-busy": running }, ...answerNodes(turn, how, open)),
    how.coloured ? legend(turn) : null,
    list.length ? citationList(list, open) : null,
    ...notes(turn),
    turn.proof && !running ? proofNodes(turn.proof, { openResult: how.openResult, wider: how.again && (() => how.again.wider(turn)) }) : null,
    turn.results.length && !running ? readPassages(turn, how) : null,
    running ? null : actions(turn, how.again, how.redraw),
  ].filter(Boolean);
}

function howLine(turn) {
  const tag = turn.mode ? el("span", { class: "mode-tag" }, turn.mode) : null;
  const waiting = turn.state === "running" && !turn.text;
  const reason = turn.reason ? el("span", {}, turn.reason) : null;
  const made = turn.query && turn.query !== turn.question;
  const query = made ? el("span", { class: "query" }, `${turn.mode === "long" ? "understood as" : "searched for"}: ${turn.query}`) : null;
  const state = waiting ? el("span", { class: "running" }, turn.mode ? "Reading" : "Looking for evidence") : null;
  return el("p", { class: "how" }, tag, reason, query, state);
}

function answerNodes(turn, how, open) {
  const colours = new Map(draftSources(turn).map((source, i) => [source, i % COLOURS]));
  const { list } = numbered(turn.citations);
  return pieces(turn).flatMap((piece) => {
    const colour = how.coloured ? colours.get(piece.source) : undefined;
    const bare = piece.support === "none";
    const classes = [colour === undefined ? "" : "token", bare ? "unsupported" : ""].filter(Boolean).join(" ");
    const hint = [colour === undefined ? "" : `drafted by ${piece.source}`, bare ? SUPPORT.none : ""].filter(Boolean).join("; ");
    const [, space, words] = /^(\s*)([^]*)$/.exec(piece.text); // colour begins with the word, not with the gap before it
    const text = classes && words
      ? [space, el("span", { class: classes, title: hint, "data-colour": colour }, words)]
      : [piece.text];
    return [...text.filter(Boolean), ...piece.chips.map((number) => chip(number, list[number - 1], open))];
  });
}

function chip(number, { verified, support }, open) {
  const label = `Citation ${number}, ${verified ? support : "not verified"}`;
  return el("button", { type: "button", class: "chip", "data-number": number, "data-verified": verified, "aria-label": label, title: label, on: { click: () => open(number) } }, `${number}`);
}

function citationList(list, open) {
  return el("ol", { class: "citations", "aria-label": "Citations" }, ...list.map((citation, i) =>
    el("li", {},
      el("button", { type: "button", class: "citation", "data-number": i + 1, on: { click: () => open(i + 1) } },
        el("span", { class: "number" }, `${i + 1}`),
        el("span", { class: "where" }, citation.name || citation.document, citation.place ? el("small", {}, ` · ${citation.place}`) : null),
        badge(citation),
        el("span", { class: "quote" }, citation.cited_text.replace(/\s+/g, " "))))));
}

/** How a citation carries its claim. */
export function badge({ verified, support }) {
  const title = verified ? SUPPORT[support] : "The stored text was changed or deleted after the answer";
  return el("span", { class: "badge", "data-verified": verified, "data-support": support, title }, icon(verified ? "check" : "doubt"), verified ? support : "not verified");
}

function notes(turn) {
  const shown = [];
  if (turn.state === "stopped") shown.push(note(ENDS.abort));
  else if (turn.finish === "length") shown.push(note(ENDS.length));
  if (turn.refused) shown.push(note("No answer: by what was read, the documents do not say."));
  if (turn.note && turn.note !== turn.text) shown.push(note(turn.note));
  const bare = turn.claims.filter((claim) => claim.support === "none").length;
  if (bare && turn.citations.length) shown.push(note(`${count(bare, "claim")} without support in the documents, underlined with dots.`));
  if (turn.verdict) shown.push(note(`Receipt: ${turn.verdict}`));
  if (turn.error) shown.push(el("p", { class: "fault" }, el("strong", {}, turn.error.title), turn.error.detail));
  return shown;
}

function note(text) {
  return el("p", { class: "note" }, text);
}

function readPassages(turn, how) {
  return el("details", { class: "read" },
    el("summary", {}, `Read ${count(turn.results.length, "passage")}`),
    el("ol", {}, ...turn.results.map((result) => el("li", {},
      el("button", { type: "button", class: "quiet", on: { click: () => how.openResult(result) } },
        `${result.name}${result.place ? ` · ${result.place}` : ""}`)))));
}

function legend(turn) {
  const sources = draftSources(turn);
  const entries = [...sources.map((source, i) => [i % COLOURS, source]), ["none", sources.length ? "the model itself" : "the model itself: nothing was drafted"]];
  return el("p", { class: "legend" }, ...entries.map(([colour, name]) => el("span", {}, el("i", { "data-colour": colour }), name)));
}
