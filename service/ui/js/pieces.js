/** An answer's text cut into pieces: plain runs, runs of one draft source, unsupported runs, citation chips. */

import { flowed, unitIndex } from "./text.js";

const MARKER = /\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]/g;
const NEAR = 4;

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
 * @param {Object} answer {text, citations, unsupported, tokens: [{text, source}]}; offsets in code points
 * @returns {{text: string, source: string|null, unsupported: boolean, chips: number[]}[]} in order; chips follow
 *   the text of their piece
 */
export function pieces({ text, citations = [], unsupported = [], tokens = [] }) {
  const index = unitIndex(text);
  const { numberOf } = numbered(citations);
  const cites = citations.map((citation) => ({
    start: index(citation.answer_start ?? 0),
    end: index(citation.answer_end || [...text].length),
    label: citation.label,
    number: numberOf.get(citation),
  }));
  const hidden = markers(text, cites);
  const doubts = unsupported.map(({ start, end }) => [index(start), index(end)]);
  const runs = tokenRuns(tokens, text);
  const shown = flowed(text);
  const cuts = new Set([0, text.length]);
  for (const { end } of cites) cuts.add(end);
  for (const [start, end] of [...hidden, ...doubts, ...runs]) cuts.add(start).add(end);
  const edges = [...cuts].sort((a, b) => a - b);
  const within = (ranges, at) => ranges.find(([start, end]) => start <= at && at < end);
  const found = edges.slice(0, -1).map((start, i) => ({
    text: within(hidden, start) ? "" : shown.slice(start, edges[i + 1]),
    source: within(runs, start)?.[2] ?? null,
    unsupported: Boolean(within(doubts, start)),
    chips: [...new Set(cites.filter((cite) => cite.end === edges[i + 1]).map((cite) => cite.number))],
  }));
  return found.filter((piece) => piece.text || piece.chips.length);
}

/** Ranges of the model's own [n] markers for which a chip stands: they are not shown twice. */
function markers(text, cites) {
  const ranges = [];
  for (const match of text.matchAll(MARKER)) {
    const end = match.index + match[0].length;
    const labels = match[1].split(",").map(Number);
    const served = labels.every((label) => cites.some((cite) => cite.label === label
      && (cite.end === end || (cite.end <= match.index && match.index - cite.end <= NEAR))));
    if (served) ranges.push([match.index, end]);
  }
  return ranges;
}

/** [start, end, source] of the runs of tokens with one source, where the tokens' texts make up the answer. */
function tokenRuns(tokens, text) {
  const whole = tokens.map((token) => token.text).join("");
  let at = text.indexOf(whole.trim()) - (whole.length - whole.trimStart().length);
  if (!whole.trim() || !text.includes(whole.trim())) return [];
  const runs = [];
  for (const token of tokens) {
    const start = Math.max(0, at);
    at += token.text.length;
    const last = runs.at(-1);
    if (last && last[2] === token.source) last[1] = Math.min(at, text.length);
    else if (at > start) runs.push([start, Math.min(at, text.length), token.source]);
  }
  return runs;
}
