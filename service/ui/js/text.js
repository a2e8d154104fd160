/** Text measured as the service measures it: in code points, where JavaScript counts UTF-16 units. */

const ASTRAL = /[\ud800-\udbff][\udc00-\udfff]/;
const HARD_WRAP = 45;

/** A function from offsets in code points to indices into `text`; offsets beyond its end give its length. */
export function unitIndex(text) {
  if (!ASTRAL.test(text)) return (offset) => Math.max(0, Math.min(offset, text.length));
  const starts = [];
  for (let at = 0; at < text.length; at += text.codePointAt(at) > 0xffff ? 2 : 1) starts.push(at);
  starts.push(text.length);
  return (offset) => starts[Math.max(0, Math.min(offset, starts.length - 1))];
}

/** [start, end) of the paragraphs of `text` between two indices; each holds the blank lines that follow it. */
export function paragraphs(text, from = 0, to = text.length) {
  const found = [];
  const blank = /\n[ \t\r]*\n\s*/g;
  blank.lastIndex = from;
  let start = from;
  for (let gap = blank.exec(text); gap && gap.index < to; gap = blank.exec(text)) {
    const end = Math.min(to, gap.index + gap[0].length);
    found.push([start, end]);
    start = end;
    blank.lastIndex = Math.max(end, blank.lastIndex);
  }
  if (start < to) found.push([start, to]);
  return found;
}

/** The text with the line breaks that only filled a page's width turned into spaces; offsets stay as they are. */
export function flowed(text) {
  return text.replace(/([^\n]+)(\r?)\n(?=[^\s*#|>\-])/g, (match, line, carriage) => (line.length < HARD_WRAP ? match : `${line}${carriage && "\u200b"} `));
}

/** Whether the line breaks of a paragraph only filled a page's width, so that it may flow again. */
export function mayFlow(paragraph) {
  const lines = paragraph.trim().split(/\r?\n/);
  return lines.length > 1 && lines.slice(0, -1).every((line) => line.length >= HARD_WRAP && !/^[ \t]{4}|\|/.test(line));
}
