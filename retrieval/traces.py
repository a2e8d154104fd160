"""Whether anything of a deleted document is left in a folder: its bytes are looked for in every file.

Of a deleted document nothing is kept that could be looked for, not even hashes, by which a guess at its text could be
confirmed. Whoever asks brings the file once more; it is parsed and embedded as it was, and stored nowhere.

Looked for are windows of the file's bytes and of its text (as UTF-8, and as JSON escapes it), the terms that an index
keeps, its vectors as float32 and, given a tokenizer, its token ids. What the documents that are there hold as well is
no trace. Compressed or quantised copies, and windows that a database has cut in two, are not recognised: many windows
are taken, so that one document leaves many traces.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.analysis.folding import fold
from retrieval.analysis.terms import MARK, chunk_terms
from retrieval.index.token_store import CorpusTokenizer
from retrieval.ingest.ingestion import Prepared

WINDOW = 24
"""bytes of the file, characters of its text, that are looked for at once"""
MOST = 4096
"""windows of one text, spread over it"""
_LEAST_TERM = 8  # bytes: a needle begins with that many
_DISTINCT = 8  # different bytes in a window, without which it is a ruler or a filling
_BITS = 22
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 32 << 20


@dataclass(frozen=True)
class Trace:
    """A file of the folder that holds so many different pieces of a document; the first begins at ``offset``."""

    path: str
    pieces: int
    offset: int


class Needles:
    """Byte strings of at least 8 bytes, all looked for in one pass."""

    def __init__(self, wanted: Iterable[bytes]) -> None:
        self._by_start: dict[int, list[bytes]] = {}
        for needle in set(wanted):
            self._by_start.setdefault(int.from_bytes(needle[:8], "little"), []).append(needle)
        self._starts = np.array(sorted(self._by_start), dtype=np.uint64)
        self._marked = np.zeros(1 << _BITS, dtype=bool)
        self._marked[_hashed(self._starts)] = True
        self.longest = max((len(n) for needles in self._by_start.values() for n in needles), default=0)

    def __len__(self) -> int:
        return sum(map(len, self._by_start.values()))

    def found(self, data: bytes) -> dict[bytes, int]:
        """Those that the data holds → where first."""
        places: dict[bytes, int] = {}
        for shift in range(min(8, max(0, len(data) - 7))):
            words = np.frombuffer(data, "<u8", (len(data) - shift) // 8, shift)
            likely = np.flatnonzero(self._marked[_hashed(words)])
            for at in likely[np.isin(words[likely], self._starts)].tolist():
                offset = shift + 8 * at
                for needle in self._by_start[int(words[at])]:
                    if data.startswith(needle, offset):
                        places[needle] = min(offset, places.get(needle, offset))
        return places

    def without(self, others: Iterable[bytes]) -> Needles:
        """Those that none of these hold."""
        held: set[bytes] = set()
        for data in others:
            held.update(self.found(data))
        return Needles(needle for needles in self._by_start.values() for needle in needles if needle not in held)


def windows_of(data: bytes) -> Iterator[bytes]:
    """Of a file's bytes."""
    for start in _spread(len(data)):
        yield from _telling(data[start : start + WINDOW])


def windows_of_text(text: str) -> Iterator[bytes]:
    """Of a text, as it is stored and as JSON has it."""
    for start in _spread(len(text)):
        window = text[start : start + WINDOW]
        yield from _telling(window.encode())
        yield from _telling(json.dumps(window)[1:-1].encode())


def words_of(terms: Iterable[str]) -> Iterator[bytes]:
    """Of the terms of an index, those that are long enough to tell."""
    for term in terms:
        for form in (term.encode(), json.dumps(term)[1:-1].encode()):
            if len(form) >= _LEAST_TERM:
                yield form


def numbers_of(rows: np.ndarray) -> Iterator[bytes]:
    """Of arrays of numbers [n, m]: the first 32 bytes of each row."""
    for row in rows:
        yield from _telling(row.tobytes()[:32])


def needles_of(prepared: Prepared | None, data: bytes, tokenizer: CorpusTokenizer | None) -> Needles:
    """What is looked for of a file, as far as it could be read."""
    wanted = [*windows_of(data)]
    if prepared is not None:
        text = prepared.parsed.text
        pieces = [(prepared.name, piece.context, piece.text) for piece in prepared.pieces]
        terms = {term.partition(MARK)[0] for _, terms in chunk_terms(pieces) for term in terms}
        folded = fold(text)
        wanted += words_of(term for term in terms if term in folded)  # a stem that is no word may be another's too
        wanted += [*windows_of_text(text), *numbers_of(prepared.vectors.astype("<f4"))]
        if tokenizer is not None:
            ids = _ids(text, tokenizer)
            wanted += numbers_of(ids[: len(ids) // 8 * 8].reshape(-1, 8))
    return Needles(wanted)


def forms_of(text: str, tokenizer: CorpusTokenizer | None) -> Iterator[bytes]:
    """As what a whole text may be kept."""
    for form in (text, fold(text)):
        yield from (form.encode(), json.dumps(form).encode())
    if tokenizer is not None:
        yield _ids(text, tokenizer).tobytes()


def look_through(folder: Path, needles: Needles, skipped: frozenset[Path] = frozenset()) -> list[Trace]:
    """What the files below a folder hold of the needles."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path in skipped or not path.is_file():
            continue
        places = dict[bytes, int]()
        for start, block in _blocks(path, needles.longest):
            places = {needle: start + at for needle, at in needles.found(block).items()} | places
        if places:
            found.append(Trace(path.relative_to(folder).as_posix(), len(places), min(places.values())))
    return found


def _blocks(path: Path, overlap: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of a file in blocks that overlap, so that nothing is cut in two."""
    with path.open("rb") as file:
        start, kept = 0, b""
        while read := file.read(_BLOCK):
            yield start, kept + read
            kept = (kept + read)[-overlap:]
            start = file.tell() - len(kept)


def _ids(text: str, tokenizer: CorpusTokenizer) -> np.ndarray:
    return np.asarray(tokenizer.encode(text), dtype="<u4")


def _spread(length: int) -> range:
    return range(0, max(0, length - WINDOW) + 1, max(WINDOW, length // MOST))


def _telling(window: bytes) -> Iterator[bytes]:
    if len(window) >= WINDOW and len(Counter(window)) >= _DISTINCT:
        yield window


def _hashed(words: np.ndarray) -> np.ndarray:
    return (words * _FACTOR) >> np.uint64(64 - _BITS)
