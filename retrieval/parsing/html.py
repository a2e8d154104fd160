"""HTML to text: one pass over the tags, no tree, so that depth and malformed markup cost nothing.

What surrounds the content of a page (menus, lists of languages, banners, headers and footers) is told by its tag, its
role, its name or its many links; it is left out and said in the notes, unless little else were left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser

from retrieval.errors import EmptyFile
from retrieval.parsing.document import Heading, ParsedDocument, Table, storable
from retrieval.parsing.encoding import Decoded, decode
from retrieval.types import Page

_HIDDEN = {"script", "style", "template", "noscript", "svg"}
_LINES = {"br", "hr", "li", "tr", "dt", "dd", "option"}
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "div", "dl", "fieldset", "figcaption", "figure",
    "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "main", "nav", "ol", "p", "pre", "section",
    "table", "title", "ul",
}  # fmt: skip
_VOID = {
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
}  # fmt: skip
_INLINE = {"a", "b", "i", "em", "strong", "span", "code", "small", "sub", "sup", "u", "font", "abbr", "cite"}
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
# These end a drawing that was not closed, as they do in a browser.
_OUT_OF_SVG = {
    "body", "br", "center", "dd", "div", "dl", "dt", "em", "h1", "h2", "h3", "h4", "h5", "h6", "head", "hr", "img",
    "li", "ol", "p", "pre", "ruby", "span", "strong", "table", "ul",
}  # fmt: skip
_AROUND_TAGS = {"nav", "aside", "footer", "header", "dialog"}
_AROUND_ROLES = {"navigation", "banner", "contentinfo", "complementary", "search", "menu", "menubar", "dialog"}
_AROUND_NAMES = re.compile(
    r"(?:^|[\s_-])(?:nav|navi|navbar|navigation|menu|side-?bar|side-?box|breadcrumbs?|cookies?|consent|gdpr|footer|masthead|"
    r"interlanguage|languages?|lang-list|langlist|skip-?link|jump-to-nav|social|share|newsletter|printfooter|catlinks|"
    r"noprint|outbrain|taboola|native-ad|advert(?:isement)?s?)(?:$|[\s_-])",
    re.I,
)
_ELSEWHERE_NAMES = re.compile(
    r"(?:^|[\s_-])(?:rail|recirculation|more-stories|more-on-this-story|story-more|related|recommend(?:ed|ations?)|"
    r"most-(?:popular|read|viewed)|trending|promos?|sponsor(?:ed)?|cta|[a-z]*teasers?)(?:$|[\s_-])",
    re.I,
)
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SKIP = re.compile(
    r"(?:skip|jump) (?:to|over|past)\b|zu[mr] (?:haupt)?(?:inhalt|navigation)\b|(?:aller|passer) (?:au|à)\b|"
    r"(?:saltar|salta|ir|vai) al?\b",
    re.I,
)
"""what a link to a part of its own page says where it spares somebody the menus"""
_INSIDE = {"main", "article"}
_WHOLE = {"html", "body", "main", "article"}
_LINKS = 10
"""links that make a list nothing but a menu"""
_LINKED = 0.85
"""share of a list's characters that are links in a menu"""
_ELSEWHERE = 0.2
"""share of a part's characters that are links in what tells of other pages, where its name says so"""
_LEAST_KEPT = 0.2
"""share of a page's characters that its content must be for the rest to be left out"""
_SPACE = re.compile(r"[ \t\r\n\f]+")
_META = re.compile(rb"<meta[^<>]+", re.I)
_CHARSET = re.compile(rb"""charset\s*=\s*(?:["']\s*)?([\w.:-]+)""", re.I)


def parse_html(data: bytes, name: str) -> ParsedDocument:
    """The content: blocks parted by a blank line, table cells by a tab, ``pre`` kept as it is."""
    decoded = _decode(data, name)
    extractor = _extract(decoded.text)
    written = extractor.content()
    if not written.text:
        raise EmptyFile(f"{name} has no visible text; nothing to ingest")
    return written.document([*decoded.notes(), *extractor.notes])


def parse_markup(markup: str) -> ParsedDocument:
    """All visible text, menus and the like included, with its tables and headings."""
    return _extract(markup).everything().document()


def html_to_text(markup: str) -> str:
    """All visible text, menus and the like included."""
    return _extract(markup).everything().text


def _extract(markup: str) -> _Extractor:
    """Errors in the markup do not hide text: what an unclosed tag would swallow is read as if it were not there."""
    hidden = set(_HIDDEN)
    notes = []
    while True:
        extractor = _Extractor(hidden)
        extractor.feed(markup)
        extractor.close()
        unclosed = extractor.swallowing
        if unclosed not in hidden or unclosed in ("script", "style"):
            break
        hidden.remove(unclosed)
        notes.append(f"a <{unclosed}> is not closed; what follows it was read")
    if unclosed in ("script", "style"):
        notes.append(f"a <{unclosed}> is not closed; what follows it was not read")
    if markup.rfind("<!--") > markup.rfind("-->"):
        notes.append("a comment is not closed; what follows it was not read")
    extractor.notes = notes
    return extractor


def _decode(data: bytes, name: str) -> Decoded:
    declared = next(filter(None, map(_CHARSET.search, _META.findall(data[:4096]))), None)
    return decode(data, name, declared.group(1).decode("ascii", "replace") if declared else None)


@dataclass
class _Region:
    """A part of the page that may be left out.

    Attributes:
        why: what it is; "" for a list, which is left out where it is a menu.
        elsewhere: by its name it tells of other pages, which links in it confirm.
        outer: the region that it lies in.
    """

    why: str
    outer: _Region | None
    elsewhere: bool = False
    chars: int = 0
    linked: int = 0
    links: int = 0
    closed: bool = False
    left_out: bool = False

    def decide(self, total: int) -> None:
        """After the region that it lies in. What was never closed may be anything, and what holds most of the page's
        ``total`` characters is around its content, whatever its name."""
        menu = self.links >= _LINKS and self.linked >= _LINKED * self.chars
        elsewhere = self.elsewhere and self.links > 0 and self.linked >= _ELSEWHERE * self.chars
        mine = self.closed and 2 * self.chars <= total and (bool(self.why) or menu or elsewhere)
        self.left_out = mine or (self.outer is not None and self.outer.left_out)


@dataclass
class _Written:
    text: str
    tables: list[Table] = field(default_factory=list)
    headings: list[Heading] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def document(self, notes: Sequence[str] = ()) -> ParsedDocument:
        text = storable(self.text)
        pages, said = [Page(1, 0, len(text))], [*notes, *self.notes]
        return ParsedDocument(text, pages, "text/html", said, tables=self.tables, headings=self.headings)


@dataclass(slots=True)
class _Piece:
    gap: str
    text: str
    region: _Region | None


Span = tuple[int, int]
"""numbers of pieces"""


@dataclass
class _MarkedTable:
    caption: Span = (0, 0)
    rows: list[Span] = field(default_factory=list)
    named: list[bool] = field(default_factory=list)
    """of each row, whether it names columns"""
    nested: bool = False


_GAPS = ("", " ", "\t", "\n", "\n\n")


class _Extractor(HTMLParser):
    def __init__(self, hidden: set[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.notes: list[str] = []
        self._pieces: list[_Piece] = []
        self._gap = ""  # white space owed before the next text
        self._hidden = hidden
        self._hidden_tag: str | None = None
        self._hidden_depth = 0
        self._pre_depth = 0
        self._open: list[tuple[str, _Region | None]] = []
        self._counts: dict[str, int] = {}
        self._region: _Region | None = None
        self._regions: list[_Region] = []
        self._tables: list[_MarkedTable] = []
        self._open_tables: list[_MarkedTable] = []
        self._headings: list[tuple[Span, int]] = []
        self._marks: dict[str, int] = {}
        self._names = False

    @property
    def swallowing(self) -> str | None:
        """The tag that hides all that follows it; None for none."""
        return self._hidden_tag or self.cdata_elem

    def everything(self) -> _Written:
        return self._write([True] * len(self._pieces))

    def content(self) -> _Written:
        """Without what surrounds it."""
        total = sum(len(piece.text) for piece in self._pieces)
        for region in self._regions:
            region.decide(total)
        kept = [piece.region is None or not piece.region.left_out for piece in self._pieces]
        left = sum(len(piece.text) for piece, keep in zip(self._pieces, kept, strict=True) if keep)
        if left < _LEAST_KEPT * total:
            return self.everything()
        written = self._write(kept)
        if left < total:
            gone = " ".join(piece.text for piece, keep in zip(self._pieces, kept, strict=True) if not keep)
            said = f"{total - left} characters, as “{gone[:60].strip()}…”"
            written.notes.append(f"left out around the content (menus, headers, footers): {said}")
        return written

    def _write(self, kept: Sequence[bool]) -> _Written:
        parts: list[str] = []
        starts, ends = [], []
        at, gap = 0, ""
        for piece, keep in zip(self._pieces, kept, strict=True):
            gap = max(gap, piece.gap, key=_GAPS.index)
            if keep:
                text = piece.text if parts else piece.text.lstrip()
                parts += [gap if parts else "", text]
                at += len(parts[-2])
                gap = ""
            starts.append(at)
            at += len(text) if keep else 0
            ends.append(at)
        text = "".join(parts).rstrip()

        def offsets(span: Span) -> Span:
            return starts[span[0]], min(ends[span[1] - 1], len(text))

        written = _Written(text)
        for span, level in self._headings:
            if all(kept[slice(*span)]):
                written.headings.append(Heading(*offsets(span), level))
        written.tables = list(self._written_tables(text, kept, offsets))
        return written

    def _written_tables(self, text: str, kept: Sequence[bool], offsets) -> Iterator[Table]:  # type: ignore[no-untyped-def]
        for table in self._tables:
            if table.nested or len(table.rows) < 2 or not all(kept[first] for first, _ in table.rows):
                continue
            caption = text[slice(*offsets(table.caption))] if table.caption[1] > table.caption[0] else ""
            head = next((number for number, named in enumerate(table.named) if not named), 0)
            names = "\n".join(text[slice(*offsets(row))] for row in table.rows[:head])
            if rows := [offsets(row) for row in table.rows[head:]]:
                yield Table("\n".join(filter(None, (caption, names))), rows)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._hidden_tag == "svg" and tag in _OUT_OF_SVG:
            self._hidden_tag, self._hidden_depth = None, 0
        if self._hidden_tag is None and tag in self._hidden:
            self._hidden_tag = tag
        if tag == self._hidden_tag:
            self._hidden_depth += 1
        self._boundary(tag)
        self._pre_depth += tag == "pre"
        if self._hidden_tag is None and tag not in _VOID:
            self._opened(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._boundary(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == self._hidden_tag:
            self._hidden_depth -= 1
            if self._hidden_depth == 0:
                self._hidden_tag = None
        elif self._hidden_tag is None:
            self._closed(tag)
        self._boundary(tag)
        self._pre_depth = max(0, self._pre_depth - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._hidden_tag is not None or self.cdata_elem in self._hidden:
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

    # -- what is open

    def _opened(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("td", "th"):
            self._names = self._names and tag == "th"
            return
        if tag == "tr":
            self._end_row()
            self._marks["tr"], self._names = len(self._pieces), True
            return
        if tag in _HEADINGS or tag == "caption":
            self._marks[tag] = len(self._pieces)
        if tag == "table":
            for outer in self._open_tables:
                outer.nested = True
            self._open_tables.append(_MarkedTable())
        if tag == "a":
            within = next((value or "" for name, value in attrs if name == "href"), "").startswith("#")
            self._marks["a"] = len(self._pieces) if within else -1
            if self._region is not None:
                self._region.links += 1
        region = self._region_of(tag, attrs) if tag not in _INLINE else None
        self._open.append((tag, self._region))
        self._counts[tag] = self._counts.get(tag, 0) + 1
        if region is not None:
            self._region = region
            self._regions.append(region)

    def _region_of(self, tag: str, attrs: list[tuple[str, str | None]]) -> _Region | None:
        if not attrs and tag not in _AROUND_TAGS and tag not in ("ul", "ol"):
            return None
        given = {name: value or "" for name, value in attrs}
        style = given.get("style", "").replace(" ", "").lower()
        if tag in _WHOLE:
            return None
        if "hidden" in given or "display:none" in style or "visibility:hidden" in style:
            return _Region("hidden", self._region)
        if tag == "header" and any(self._counts.get(inside) for inside in _INSIDE):
            return None
        names = _CAPITAL.sub("-", f"{given.get('id', '')} {given.get('class', '')}")
        if tag in _AROUND_TAGS or given.get("role", "").lower() in _AROUND_ROLES or _AROUND_NAMES.search(names):
            return _Region(tag, self._region)
        elsewhere = _ELSEWHERE_NAMES.search(names) is not None
        return _Region("", self._region, elsewhere) if elsewhere or tag in ("ul", "ol") else None

    def _closed(self, tag: str) -> None:
        if tag == "tr":
            self._end_row()
        if tag in ("table", "caption") or tag in _HEADINGS:
            self._end_mark(tag)
        if tag == "a":
            self._end_link()
        if not self._counts.get(tag):
            return
        while True:
            opened, outer = self._open.pop()
            self._counts[opened] -= 1
            if self._region is not outer and self._region is not None:
                self._region.closed = opened == tag
                self._leave(self._region, outer)
            if opened == tag:
                return

    def _leave(self, region: _Region, outer: _Region | None) -> None:
        self._region = outer
        if outer is not None:
            outer.chars += region.chars
            outer.linked += region.linked
            outer.links += region.links

    def _end_row(self) -> None:
        start = self._marks.pop("tr", len(self._pieces))
        if self._open_tables and len(self._pieces) > start:
            self._open_tables[-1].rows.append((start, len(self._pieces)))
            self._open_tables[-1].named.append(self._names)

    def _end_link(self) -> None:
        start = self._marks.pop("a", -1)
        pieces = self._pieces[start:] if start >= 0 else []
        if pieces and _SKIP.match(" ".join(piece.text for piece in pieces)):
            region = _Region("a", self._region, closed=True)
            self._regions.append(region)
            for piece in pieces:
                piece.region = region

    def _end_mark(self, tag: str) -> None:
        if tag == "table":
            self._end_row()
            if self._open_tables:
                self._tables.append(self._open_tables.pop())
            return
        start = self._marks.pop(tag, len(self._pieces))
        if len(self._pieces) == start:
            return
        if tag == "caption":
            if self._open_tables:
                self._open_tables[-1].caption = (start, len(self._pieces))
        else:
            self._headings.append(((start, len(self._pieces)), int(tag[1])))

    # -- text

    def _boundary(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._owe("\n\n")
        elif tag in _LINES:
            self._owe("\n")
        elif tag in ("td", "th"):
            self._owe("\t")

    def _owe(self, gap: str) -> None:
        self._gap = max(self._gap, gap, key=_GAPS.index)

    def _emit(self, text: str) -> None:
        self._pieces.append(_Piece(self._gap, text, self._region))
        self._gap = ""
        if self._region is not None:
            self._region.chars += len(text)
            self._region.linked += len(text) if self._counts.get("a") else 0
