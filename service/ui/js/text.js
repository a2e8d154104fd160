/** Text measured as the service measures it: in code points, where JavaScript counts UTF-16 units. */

const ASTRAL = /[\ud800-\udbff][\udc00-\udfff]/;
const SOFT = /(?<=[^\n]{45})\r?\n(?=[^\s*#|>\-])/g;

/** A function from offsets in code points to indices into `text`; offsets beyond its end give its length. */
export function unitIndex(text) {
  if (!ASTRAL.test(text)) return (offset) => Math.max(0, Math.min(offset, text.length));
  const starts = [];
  for (let at = 0; at < text.length; at += text.codePointAt(at) > 0xffff ? 2 : 1) starts.push(at);
  starts.push(text.length);
  return (offset) => starts[Math.max(0, Math.min(offset, starts.length - 1))];
}

/** [start, end) of the paragraphs of a text; each holds the blank lines that follow it. */
export function paragraphs(text) {
  const found = [];
  let start = 0;
  for (const gap of text.matchAll(/\n[ \t\r]*\n\s*/g)) {
    found.push([start, gap.index + gap[0].length]);
    start = gap.index + gap[0].length;
  }
  if (start < text.length) found.push([start, text.length]);
  return found;
}

/** [start, end) of the line breaks that only fill a page's width: the line before is long, the next no list item. */
export function softBreaks(text) {
  return [...text.matchAll(SOFT)].map((found) => [found.index, found.index + found[0].length]);
}

/** The text with such line breaks turned into spaces; offsets stay as they are. */
export function flowed(text) {
  return text.replace(SOFT, (found) => (found.length === 2 ? "\u200b " : " "));
}
