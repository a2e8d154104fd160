"""Chunks: exact slices that lose nothing."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.embedding.embedder import SentenceEmbedder
from retrieval.errors import InvalidRequest
from retrieval.parsing import parse
from retrieval.parsing.chunking import ChunkingOptions, _Contexts, chunk
from retrieval.parsing.document import Heading, Table
from retrieval.parsing.limits import Limits
from retrieval.parsing.sandbox import Sandbox
from retrieval.parsing.sentences import sentences
from retrieval.types import Page


def word_starts(text: str) -> np.ndarray:
    return np.array([found.start() for found in re.finditer(r"\w+|[^\w\s]", text)], dtype=np.int64)


TEXTS = st.text(alphabet=st.sampled_from("ab .!?\n\r\"'AB"), max_size=300)


@given(TEXTS, st.integers(8, 20), st.integers(0, 7))
def test_chunks_are_slices_that_cover_every_word_within_the_limit(text: str, max_tokens: int, overlap: int) -> None:
    options = ChunkingOptions(max_tokens=max_tokens, overlap=overlap)
    pieces = chunk(text, [Page(1, 0, len(text))], word_starts, options)
    covered = np.zeros(len(text), dtype=bool)
    for piece in pieces:
        assert text[piece.start : piece.end] == piece.text == piece.text.strip()
        assert piece.tokens <= max_tokens
        covered[piece.start : piece.end] = True
    assert all(covered[i] for i, character in enumerate(text) if not character.isspace())
    if overlap == 0:
        assert all(one.end <= two.start for one, two in pairwise(pieces))
    assert all(one.start < two.start for one, two in pairwise(pieces))


def test_chunks_of_a_book_end_where_sentences_end(shared: Path) -> None:
    parsed = parse((shared / "corpus" / "news_from_nowhere.txt").read_bytes(), "n.txt")
    pieces = chunk(parsed.text, parsed.pages, word_starts)
    ends = {end for _, end in sentences(parsed.text)}
    assert np.mean([piece.end in ends for piece in pieces]) > 0.99
    assert np.mean([piece.tokens for piece in pieces]) > 100


def test_an_endless_word_is_cut() -> None:
    pieces = chunk("x" * 100_000, [Page(1, 0, 100_000)], lambda text: np.array([0]))
    assert max(len(piece.text) for piece in pieces) <= 192 * 32
    assert "".join(piece.text for piece in pieces) == "x" * 100_000


def test_pages() -> None:
    text = "First page goes here.\n\nSecond page goes here."
    pieces = chunk(text, [Page(1, 0, 21), Page(2, 23, 45)], word_starts, ChunkingOptions(max_tokens=8, fill=0.2))
    assert [(piece.text, piece.page) for piece in pieces] == [
        ("First page goes here.", 1),
        ("Second page goes here.", 2),
    ]


@pytest.mark.parametrize("bad", [{"max_tokens": 4}, {"overlap": 500}, {"fill": 0.0}])
def test_bad_options_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match="chunking needs"):
        ChunkingOptions(**bad)  # type: ignore[arg-type]


TABLE = "Year\tLitres\n1890\t12. A row\n1891\t40 of it\n1892\t7 or so"
SECTIONS = f"Mill\n\nIt stands by the river.\n\nOil\n\n{TABLE}\n\nGate\n\nIt is shut."


def sections() -> tuple[list[Table], list[Heading]]:
    rows = [(found.start(), found.end()) for found in re.finditer(r"18\d\d.*", SECTIONS)]
    at = {word: SECTIONS.index(word) for word in ("Mill", "Oil", "Gate")}
    headings = [Heading(at["Mill"], at["Mill"] + 4, 1), Heading(at["Oil"], at["Oil"] + 3, 2)]
    return [Table("Year\tLitres", rows)], [*headings, Heading(at["Gate"], at["Gate"] + 4, 2)]


def test_a_row_is_never_cut_and_carries_its_header_and_headings() -> None:
    pieces = chunk(
        SECTIONS, [Page(1, 0, len(SECTIONS))], word_starts, ChunkingOptions(max_tokens=9, fill=0.2), *sections()
    )
    of_text = {piece.text: piece for piece in pieces}
    last = next(piece for piece in pieces if "1892" in piece.text)
    assert last.in_context.startswith("Mill › Oil\nYear\tLitres\n18")
    assert not any(text.endswith("12.") for text in of_text), "no row is cut after its full stop"
    for row in ("1890\t12. A row", "1891\t40 of it", "1892\t7 or so"):
        assert sum(row in text for text in of_text) == 1
    assert not any(text.endswith(("Oil", "Gate")) for text in of_text), "a heading goes with what it names"


def test_a_context_is_cut_at_its_beginning() -> None:
    text = f"{'Long ' * 60}end\n\nWords of the section."
    options = ChunkingOptions(max_tokens=8, context_tokens=3)
    pieces = chunk(text, [Page(1, 0, len(text))], word_starts, options, (), [Heading(0, 303, 1)])
    assert pieces[-1].context == "Long Long end"


@given(TEXTS, st.data())
def test_rows_cover_what_they_covered(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    rows = [(one, two) for one, two in zip(cuts[::2], cuts[1::2], strict=False) if one < two]
    pieces = chunk(text, [Page(1, 0, len(text))], word_starts, ChunkingOptions(max_tokens=8), [Table("Head", rows)])
    covered = np.zeros(len(text), dtype=bool)
    for piece in pieces:
        covered[piece.start : piece.end] = True
        assert piece.tokens <= 8
    assert all(covered[at] for at, character in enumerate(text) if not character.isspace())


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=12), st.integers(0, 60))
def test_the_headings_above_a_chunk_are_those_of_its_section(made: list[tuple[int, int]], start: int) -> None:
    headings, at = [], 0
    for level, gap in made:
        headings.append(Heading(at, at + 2, level))
        at += 2 + gap
    text = "".join(f"{chr(65 + i % 26)}" for i in range(100))
    found: list[str] = []
    level = 9
    for heading in reversed([one for one in headings if one.start < start]):
        if heading.level < level and heading.end <= start:
            level = heading.level
            found.append(text[heading.start : heading.end])
    contexts = _Contexts(text, (), headings, word_starts, 48)
    assert contexts._section(start) == found[::-1]


def test_many_headings_take_no_more_time_than_they_are() -> None:
    line = "## of a section\n\nSome words.\n\n"
    text = line * 30_000
    headings = [Heading(n * len(line), n * len(line) + 15, 2) for n in range(30_000)]
    began = time.process_time()
    chunks = chunk(text, [Page(1, 0, len(text))], word_starts, headings=headings)
    assert time.process_time() - began < 10
    assert len(chunks) > 1000


def test_what_comes_out_of_the_sandbox_is_read_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One JSON text of a list in millions stops every thread of the service."""
    lengths: list[int] = []

    def longest(value: Any) -> int:
        held = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
        return max([len(held), *map(longest, held)])

    def noted(work: Any) -> Any:
        def run(value: Any, *more: Any, **named: Any) -> Any:
            made = work(value, *more, **named)
            lengths.append(longest(made if isinstance(made, dict | list) else value))
            return made

        return run

    tokens = SentenceEmbedder().tokens
    files = {"a.md": b"## a\n\n" * 25_000, "a.csv": b"name,arches\n" + b"Avignon,22\n" * 25_000}
    sandbox = Sandbox(Limits())
    monkeypatch.setattr(json, "loads", noted(json.loads))
    monkeypatch.setattr(json, "dumps", noted(json.dumps))
    try:
        for name, data in files.items():
            parsed = sandbox.parse(data, name)
            assert max(len(parsed.headings), *(len(table.rows) for table in parsed.tables), 0) == 25_000
            sandbox.chunk(name, parsed, tokens, ChunkingOptions())
    finally:
        sandbox.close()
    assert 5_000 <= max(lengths) <= 10_000


def test_chunks_are_the_same_in_the_sandbox() -> None:
    tokens = SentenceEmbedder().tokens
    data = b"# Bridge\n\nSeven arches stand. They are old.\n\n" * 200 + b"| a | b |\n| - | - |\n| 1 | 2 |\n"
    sandbox = Sandbox(Limits())
    try:
        parsed = sandbox.parse(data, "a.md")
        inside = sandbox.chunk("a.md", parsed, tokens, ChunkingOptions())
        again = sandbox.chunk("a.md", parsed, tokens, ChunkingOptions(max_tokens=64))
    finally:
        sandbox.close()
    here = chunk(parsed.text, parsed.pages, tokens.starts, None, parsed.tables, parsed.headings)
    assert inside == here
    assert any(piece.context for piece in inside)
    assert len(again) > len(inside)
