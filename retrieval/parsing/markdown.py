"""Markdown: the file's own text, less the HTML tags that people write into it."""

from __future__ import annotations

import bisect
import re

from retrieval.parsing.document import Heading

_HEADING = re.compile(r"^ {0,3}(?P<marks>#{1,6})[ \t]++(?P<said>[^\r\n]*+)\r?$", re.M)
_CODE = re.compile(r"^(?P<fence>`{3,}+|~{3,}+)[^\n]*+\n.*?(?:^(?P=fence)[`~]*+[ \t]*+$|\Z)|`[^`\n]++`", re.M | re.S)
_TAGS = (
    "a|abbr|address|article|aside|b|big|blockquote|br|caption|center|cite|code|col|colgroup|dd|del|details|dfn|div|dl|dt|em|"
    "figcaption|figure|font|footer|h[1-6]|header|hr|i|iframe|img|input|ins|kbd|label|li|main|mark|nav|ol|p|picture|pre|q|s|"
    "samp|section|small|source|span|strike|strong|sub|summary|sup|table|tbody|td|tfoot|th|thead|tr|tt|u|ul|var|video|wbr"
)
_HIDES = re.compile(r"<(?:(!--)|(script|style|svg)\b[^<>]*>)", re.I)
_SHOWS = {kind: re.compile(rf"</{kind}\s*+>", re.I) for kind in ("script", "style", "svg")} | {"!--": re.compile("-->")}
_TAG = re.compile(rf"</?(?:{_TAGS})(?:\s[^<>]*)?/?>", re.I)
_LINE = re.compile(r"<(?:br|hr)\b", re.I)
_CELL = re.compile(r"</t[dh]", re.I)


def without_tags(text: str) -> tuple[str, int]:
    """(text without HTML tags and comments, how many there were). Code is left as it is."""
    parts, count, at = [], 0, 0
    for code in [*_CODE.finditer(text), None]:
        prose, found = _plain(text[at : code.start() if code else len(text)])
        parts += [prose, code[0] if code else ""]
        count += found
        at = code.end() if code else at
    return "".join(parts), count


def headings_of(text: str) -> list[Heading]:
    """The lines that begin with ``#``, code excepted, without their marks."""
    code = [found.span() for found in _CODE.finditer(text)]
    found = []
    for line in _HEADING.finditer(text):
        said = line["said"].rstrip(" \t").rstrip("#").rstrip(" \t")
        before = bisect.bisect(code, (line.start(), len(text))) - 1
        if said and not (before >= 0 and line.start() < code[before][1]):
            start = line.start("said")
            found.append(Heading(start, start + len(said), len(line["marks"])))
    return found


def _plain(text: str) -> tuple[str, int]:
    if "<" not in text:
        return text, 0
    text, hidden = _without_hidden(text)
    text, tags = _TAG.subn(lambda tag: _instead(tag[0]), text)
    return text, hidden + tags


def _without_hidden(text: str) -> tuple[str, int]:
    """(text without comments and elements that are not shown, how many there were). What never ends is shown."""
    parts, at, scanned = [], 0, 0
    endless: set[str] = set()
    while (begin := _HIDES.search(text, scanned)) is not None:
        kind = (begin[1] or begin[2]).lower()
        end = None if kind in endless else _SHOWS[kind].search(text, begin.end())
        if end is None:
            endless.add(kind)
            scanned = begin.end()
        else:
            parts.append(text[at : begin.start()])
            at = scanned = end.end()
    return "".join([*parts, text[at:]]), len(parts)


def _instead(tag: str) -> str:
    if _LINE.match(tag):
        return "\n"
    return "\t" if _CELL.match(tag) else ""
