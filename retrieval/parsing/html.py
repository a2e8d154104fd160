"""HTML to text: one pass over the tags, no tree, so that depth and malformed markup cost nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from retrieval.errors import EmptyFile
from retrieval.parsing.document import ParsedDocument, single_page, storable
from retrieval.parsing.encoding import decode

_HIDDEN = {"script", "style", "template", "noscript", "svg"}
_LINES = {"br", "hr", "li", "tr", "dt", "dd", "option"}
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "div", "dl", "fieldset", "figcaption", "figure",
    "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "main", "nav", "ol", "p", "pre", "section",
    "table", "title", "ul",
}  # fmt: skip
_SPACE = re.compile(r"[ \t\r\n\f]+")
_META = re.compile(rb"<meta[^<>]+", re.I)
_CHARSET = re.compile(rb"""charset\s*=\s*(?:["']\s*)?([\w.:-]+)""", re.I)


def parse_html(data: bytes, name: str) -> ParsedDocument:
    """The visible text: blocks parted by a blank line, table cells by a tab, ``pre`` kept as it is."""
    text = html_to_text(_decode(data, name))
    if not text:
        raise EmptyFile(f"{name} has no visible text; nothing to ingest")
    return single_page(storable(text), "text/html")


def html_to_text(markup: str) -> str:
    extractor = _Extractor()
    extractor.feed(markup)
    extractor.close()
    return extractor.text()


def _decode(data: bytes, name: str) -> str:
    declared = next(filter(None, map(_CHARSET.search, _META.findall(data[:4096]))), None)
    if declared and not data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode(declared.group(1).decode("ascii"))
        except (LookupError, UnicodeDecodeError):
            pass  # a wrong declaration is common; decode() then judges by the bytes
    return decode(data, name)[0]


class _Extractor(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._gap = ""  # white space owed before the next text: "", " ", "\t", "\n" or "\n\n"
        self._hidden_tag: str | None = None
        self._hidden_depth = 0
        self._pre_depth = 0

    def text(self) -> str:
        return "".join(self._parts).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._hidden_tag is None and tag in _HIDDEN:
            self._hidden_tag = tag
        if tag == self._hidden_tag:
            self._hidden_depth += 1
        self._boundary(tag)
        self._pre_depth += tag == "pre"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._boundary(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == self._hidden_tag:
            self._hidden_depth -= 1
            if self._hidden_depth == 0:
                self._hidden_tag = None
        self._boundary(tag)
        self._pre_depth = max(0, self._pre_depth - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._hidden_tag is not None:
            return
        if self._pre_depth:
            self._emit(data)
            return
        words = _SPACE.sub(" ", data)
        if words.startswith(" "):
            self._owe(" ")
        if words.strip(" "):
            self._emit(words.strip(" "))
            if words.endswith(" "):
                self._owe(" ")

    def _boundary(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._owe("\n\n")
        elif tag in _LINES:
            self._owe("\n")
        elif tag in ("td", "th"):
            self._owe("\t")

    def _owe(self, gap: str) -> None:
        order = ("", " ", "\t", "\n", "\n\n")
        self._gap = max(self._gap, gap, key=order.index)

    def _emit(self, text: str) -> None:
        if self._gap and self._parts:
            self._parts.append(self._gap)
        self._gap = ""
        self._parts.append(text)
