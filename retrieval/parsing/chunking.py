"""Token-aware chunks that end where a sentence, paragraph or row of a table ends.

Token positions of the whole text are counted once; a chunk's length is then a difference of two look-ups. Chunks
do not overlap by default: whole sentences are kept together, so a sentence is never cut unless it alone is longer
than a chunk. What a chunk needs to mean something alone (the headings of its section, the caption and header of its
table) is its context: embedded, searched and shown with it, and no part of its text.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrieval.errors import InvalidRequest
from retrieval.parsing.document import Heading, Table, page_at
from retrieval.parsing.sentences import Span, paragraphs, sentences
from retrieval.types import Page

CHARS_PER_TOKEN = 32
"""characters that count as one token whatever the tokenizer says"""

TokenStarts = Callable[[str], np.ndarray]
"""text → int64[n] rising offsets of the first character of each of its tokens"""


@dataclass(frozen=True)
class Chunk:
    """``text`` is the slice ``start:end`` of the document's text, exactly; ``page`` is where it starts. ``tokens`` are
    those of the text; ``context`` has lines that stand above it in the document."""

    start: int
    end: int
    page: int
    tokens: int
    text: str
    context: str = ""

    @property
    def in_context(self) -> str:
        """What is embedded and searched."""
        return in_context(self.context, self.text)


def in_context(context: str, text: str) -> str:
    return f"{context}\n{text}" if context else text


@dataclass(frozen=True)
class ChunkingOptions:
    """How long chunks are, and where they end.

    Attributes:
        max_tokens: no chunk is longer; the default leaves MiniLM's 256 some room and a small reader's prompt
            several chunks.
        fill: a chunk at least this full ends at the next paragraph break rather than take part of another
            paragraph.
        overlap: tokens of whole sentences repeated from the end of the chunk before, at most.
        context_tokens: of a chunk's context, at most; with max_tokens still within what MiniLM reads.
    """

    max_tokens: int = 192
    fill: float = 0.6
    overlap: int = 0
    context_tokens: int = 48

    def __post_init__(self) -> None:
        if self.max_tokens < 8 or not 0 <= self.overlap < self.max_tokens or not 0 < self.fill <= 1:
            raise InvalidRequest(
                f"chunking needs max_tokens >= 8, 0 <= overlap < max_tokens and 0 < fill <= 1, not {self}"
            )


def chunk(
    text: str,
    pages: list[Page],
    token_starts: TokenStarts,
    options: ChunkingOptions | None = None,
    tables: Sequence[Table] = (),
    headings: Sequence[Heading] = (),
) -> list[Chunk]:
    """Chunks in order, covering every sentence and row of ``text``."""
    options = options or ChunkingOptions()
    starts = np.asarray(token_starts(text), dtype=np.int64)

    def count(start: int, end: int) -> int:
        """Tokens, or what so many characters amount to at least: some tokenizers make one of an endless word."""
        first, last = np.searchsorted(starts, (start, end))
        return max(int(last - first), (end - start) // CHARS_PER_TOKEN)

    context = _Contexts(text, tables, headings, token_starts, options.context_tokens)
    pieces = list(_pieces(text, starts, count, options.max_tokens, tables))
    names = {heading.start for heading in headings}
    pieces = [replace(piece, is_heading=piece.start in names) for piece in pieces] if names else pieces
    return [
        Chunk(start, end, page_at(pages, start), count(start, end), text[start:end], context.of(start, end))
        for start, end in _pack(pieces, count, options)
    ]


class _Contexts:
    """What stands above a chunk and belongs to it."""

    def __init__(
        self,
        text: str,
        tables: Sequence[Table],
        headings: Sequence[Heading],
        token_starts: TokenStarts,
        max_tokens: int,
    ) -> None:
        self._text = text
        self._headings = headings
        self._above = _parents(headings)
        self._tables = [table for table in tables if table.rows]
        self._token_starts = token_starts
        self._max_tokens = max_tokens
        self._known: dict[str, str] = {}

    def of(self, start: int, end: int) -> str:
        lines = [" › ".join(self._section(start))]
        at = bisect.bisect_right(self._tables, start, key=lambda table: table.rows[0][0]) - 1
        if at >= 0 and start < self._tables[at].rows[-1][1]:
            lines.append(self._tables[at].header)
        context = "\n".join(filter(None, lines))
        if context not in self._known:
            self._known[context] = self._cut(context)
        return self._known[context]

    def _section(self, start: int) -> list[str]:
        """The headings above, from the whole to the part; not those within the chunk."""
        found: list[str] = []
        number = bisect.bisect_left(self._headings, (start,)) - 1
        while number >= 0 and self._headings[number].end > start:
            number -= 1
        while number >= 0:
            heading = self._headings[number]
            found.append(" ".join(self._text[heading.start : heading.end].split()))
            number = self._above[number]
        return found[::-1]

    def _cut(self, context: str) -> str:
        """Its last tokens, which are nearest to the chunk; the names of columns come last."""
        if not context:
            return ""
        starts = self._token_starts(context)
        if len(starts) <= self._max_tokens:
            return context
        return context[int(starts[len(starts) - self._max_tokens]) :]


def _parents(headings: Sequence[Heading]) -> list[int]:
    """Of each heading the one that its section lies in, -1 where there is none."""
    parents: list[int] = []
    open_: list[int] = []
    for number, heading in enumerate(headings):
        while open_ and headings[open_[-1]].level >= heading.level:
            open_.pop()
        parents.append(open_[-1] if open_ else -1)
        open_.append(number)
    return parents


@dataclass(frozen=True)
class _Piece:
    """A sentence, or a part of one that is too long for a chunk."""

    start: int
    end: int
    ends_paragraph: bool
    is_heading: bool = False


def _pieces(
    text: str, starts: np.ndarray, count: Callable[[int, int], int], max_tokens: int, tables: Sequence[Table]
) -> Iterator[_Piece]:
    """Sentences, and rows of tables, which are never cut into sentences."""
    for whole in _wholes(text, tables):
        for part_start, part_end in _split(text, whole.start, whole.end, starts, count, max_tokens):
            yield _Piece(part_start, part_end, whole.ends_paragraph and part_end == whole.end)


def _wholes(text: str, tables: Sequence[Table]) -> Iterator[_Piece]:
    at = 0
    for table in tables:
        for number, (row_start, row_end) in enumerate(table.rows):
            yield from _sentence_pieces(text, at, row_start)
            start, end = _trimmed(text, row_start, row_end)
            if start < end:
                yield _Piece(start, end, number == len(table.rows) - 1)
            at = max(at, row_end)
    yield from _sentence_pieces(text, at, len(text))


def _sentence_pieces(text: str, start: int, end: int) -> Iterator[_Piece]:
    if start >= end:
        return
    for first, last in paragraphs(text[start:end]):
        for one, other in sentences(text, start + first, start + last):
            yield _Piece(one, other, other == start + last)


def _trimmed(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _split(
    text: str, start: int, end: int, starts: np.ndarray, count: Callable[[int, int], int], max_tokens: int
) -> Iterator[Span]:
    """Cut a sentence of more than ``max_tokens`` at white space where there is some, else at a token."""
    while count(start, end) > max_tokens:
        beyond = np.searchsorted(starts, start) + max_tokens
        limit = int(starts[beyond]) if beyond < len(starts) else end
        limit = min(limit, start + CHARS_PER_TOKEN * max_tokens)
        if limit <= start:  # a tokenizer that gives several tokens one character
            limit = start + 1
        space = max(text.rfind(" ", start + 1, limit), text.rfind("\n", start + 1, limit))
        cut = space if space > start + (limit - start) // 2 else limit
        yield start, _rstrip(text, start, cut)
        start = cut
        while start < end and text[start].isspace():
            start += 1
    if start < end:
        yield start, end


def _rstrip(text: str, start: int, end: int) -> int:
    while end > start + 1 and text[end - 1].isspace():
        end -= 1
    return end


def _pack(pieces: list[_Piece], count: Callable[[int, int], int], options: ChunkingOptions) -> Iterator[Span]:
    """Greedy: fill a chunk to ``max_tokens``, but stop early at a paragraph's end once it is full enough."""
    index = 0
    while index < len(pieces):
        first = index
        start = pieces[first].start
        while index < len(pieces) and count(start, pieces[index].end) <= options.max_tokens:
            index += 1
        index = max(index, first + 1)
        if index < len(pieces):
            index = _back_to_paragraph(pieces, first, index, count, options)
            while index > first + 1 and pieces[index - 1].is_heading:  # it goes with what it names
                index -= 1
        yield start, pieces[index - 1].end
        if index < len(pieces):
            index = _back_for_overlap(pieces, first, index, count, options.overlap)


def _back_to_paragraph(
    pieces: list[_Piece], first: int, index: int, count: Callable[[int, int], int], options: ChunkingOptions
) -> int:
    for candidate in range(index, first, -1):
        if count(pieces[first].start, pieces[candidate - 1].end) < options.fill * options.max_tokens:
            break
        if pieces[candidate - 1].ends_paragraph:
            return candidate
    return index


def _back_for_overlap(
    pieces: list[_Piece], first: int, index: int, count: Callable[[int, int], int], overlap: int
) -> int:
    end = pieces[index - 1].end
    while index - 1 > first and count(pieces[index - 1].start, end) <= overlap:
        index -= 1
    return index
