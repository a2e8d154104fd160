/** An answer's text cut into pieces: runs of one draft source and of one claim's support, citation chips. */

import { flowed, unitIndex } from "./text.js";

const MARKER = /\[(D*\d{1,4}(?:\s*,\s*D*\d{1,4})*)\]/g;

/**
 * Citations in the order of the answer, each numbered from 1; the same span cited twice has one number.
 * @returns {{list: Object[], numberOf: Map<Object, number>}}
 */
export function numbered(citations) {
  const list = [];
  const numberOf = new Map();
  const known = new Map();
  for (const citation of citations) {
    const span = `${citation.document} ${citation.start} ${citation.end}`;
    if (!known.has(span)) {
      list.push(citation);
      known.set(span, list.length);
    }
    numberOf.set(citation, known.get(span));
  }
  return { list, numberOf };
}

/**
 * Cut an answer.
 * @param {Object} answer {text, citations, claims, runs: [{text, source}]}; offsets in code points
 * @returns {{text: string, source: string|null, support: string|null, chips: number[]}[]} in order; chips follow the
 *   text of their piece
 */
export function pieces({ text, citations = [], claims = [], runs = [] }) {
  const index = unitIndex(text);
  const { numberOf } = numbered(citations);
  const cites = citations.map((citation) => ({
    start: index(citation.answer_start ?? 0),
    end: index(citation.answer_end || [...text].length),
    label: citation.label,
    number: numberOf.get(citation),
  }));
  const hidden = markers(text, cites);
  const judged = claims.map(({ start, end, support }) => [index(start), index(end), support]);
  const colours = placed(runs, text);
  const shown = flowed(text);
  const cuts = new Set([0, text.length]);
  for (const { end } of cites) cuts.add(end);
  for (const [start, end] of [...hidden, ...judged, ...colours]) cuts.add(start).add(end);
  const edges = [...cuts].sort((a, b) => a - b);
  const within = (ranges, at) => ranges.find(([start, end]) => start <= at && at < end);
  const found = edges.slice(0, -1).map((start, i) => ({
    text: within(hidden, start) ? "" : shown.slice(start, edges[i + 1]),
    source: within(colours, start)?.[2] ?? null,
    support: within(judged, start)?.[2] ?? null,
    chips: [...new Set(cites.filter((cite) => cite.end === edges[i + 1]).map((cite) => cite.number))],
  }));
  return found.filter((piece) => piece.text || piece.chips.length);
}

/** Ranges of the model's own [n] markers in claims whose chips stand for them: they are not shown twice. */
function markers(text, cites) {
  const ranges = [];
  for (const match of text.matchAll(MARKER)) {
    const end = match.index + match[0].length;
    const labels = match[1].split(",").map((label) => Number(label.replace(/\D/g, "")));
    const served = labels.every((label) => cites.some((cite) => cite.label === label && cite.start <= match.index && end <= cite.end));
    if (served) ranges.push([match.index, end]);
  }
  return ranges;
}

/** [start, end, source] of the runs, where their texts make up the answer; adjacent ones of one source are joined. */
function placed(runs, text) {
  const whole = runs.map((run) => run.text).join("");
  const words = whole.trim();
  if (!words || !text.includes(words)) return [];
  let at = text.indexOf(words) - whole.indexOf(words);
  const ranges = [];
  for (const run of runs) {
    const start = Math.max(0, at);
    at += run.text.length;
    const last = ranges.at(-1);
    if (last && last[2] === run.source) last[1] = Math.min(at, text.length);
    else if (at > start) ranges.push([start, Math.min(at, text.length), run.source]);
  }
  return ranges;
}
