"""The documents of a data set in a library, and where in their stored text the gold sentences stand."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

import retrieval
from eval.errors import EvalError
from eval.qa.dataset import Dataset, Item
from retrieval.library import Library
from retrieval.types import Upload

Span = tuple[str, int, int]
"""A document's name, and characters of its stored text: start, end (exclusive)."""
HALF = 0.5
"""Share of a sentence that must be covered for it to be found or cited."""


class Corpus:
    """A library with the documents of one data set.

    Attributes:
        ids: name of a document → its id; names: the other way.
        texts: stored text by name.
    """

    def __init__(self, dataset: Dataset, home: Path, embedder: str | Path) -> None:
        """Ingests what is not in the library yet and builds the index.

        Raises:
            EvalError: a document cannot be read, or lacks a gold sentence.
        """
        self.library = Library.open(home, embedder=embedder)
        try:
            uploads = [Upload(name, _bytes(said)) for name, said in dataset.documents.items()]
            results = self.library.ingest(uploads)
            failed = next((result for result in results if result.status == "failed"), None)
            if failed is not None:
                raise EvalError(f"{failed.name} cannot be read: {failed.error}", param="data")
            self.library.build_index()
            self.ids = {result.name: str(result.id) for result in results}
            self.names = {id_: name for name, id_ in self.ids.items()}
            self.texts = {name: self.library.text(id_) for name, id_ in self.ids.items()}
            self._folded = {name: _Folded(text) for name, text in self.texts.items()}
            self._gold = {item.id: [list(self._places(item, gold)) for gold in item.gold] for item in dataset.items}
        except BaseException:
            self.library.close()
            raise

    def __enter__(self) -> Corpus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.library.close()

    def gold(self, item: Item) -> Sequence[Sequence[Span]]:
        """The gold sentences, each as the places where it stands."""
        return self._gold[item.id]

    def covers(self, spans: Sequence[Span], item: Item) -> bool:
        """Whether the spans together cover half of one of the gold sentences or more."""
        return any(share(spans, place) >= HALF for places in self.gold(item) for place in places)

    def cites(self, spans: Sequence[Span], item: Item) -> bool:
        """Whether one of the spans is, by half of the shorter of the two, a gold sentence or a part of one."""
        golds = [place for places in self.gold(item) for place in places]
        return any(share([gold], span) >= HALF or share([span], gold) >= HALF for span in spans for gold in golds)

    def text(self, span: Span) -> str:
        name, start, end = span
        return self.texts[name][start:end]

    def _places(self, item: Item, gold: str) -> Iterator[Span]:
        found = [(item.document, start, end) for start, end in self._folded[item.document].find(gold)]
        if not found:
            raise EvalError(
                f"the gold sentence of {item.id} does not stand in {item.document}: {gold[:80]!r}",
                hint="The document has changed, or is read otherwise than before: mend the question.",
                param="data",
            )
        yield from found


def share(spans: Sequence[Span], of: Span) -> float:
    """Share of the characters of a span that others cover."""
    name, start, end = of
    covered = np.zeros(end - start, bool)
    for other, first, last in spans:
        if other == name:
            covered[max(0, first - start) : max(0, last - start)] = True
    return float(covered.mean()) if len(covered) else 0.0


class _Folded:
    """A text without white space, case and signs that do not show, with the way back to its characters."""

    def __init__(self, text: str) -> None:
        signs = [(sign, at) for at, character in enumerate(text) for sign in _fold(character)]
        self.text = "".join(sign for sign, _ in signs)
        self._origins = [at for _, at in signs]

    def find(self, wanted: str) -> Iterator[tuple[int, int]]:
        """Where the words stand, whatever lines and spaces are between them."""
        folded = "".join(sign for character in wanted for sign in _fold(character))
        at = self.text.find(folded) if folded else -1
        while at >= 0:
            yield self._origins[at], self._origins[at + len(folded) - 1] + 1
            at = self.text.find(folded, at + 1)


def _fold(character: str) -> str:
    if character.isascii():
        return "" if character.isspace() else character.lower()
    if unicodedata.category(character) in ("Cf", "Cn"):
        return ""
    return "".join(unicodedata.normalize("NFKC", character).casefold().split())


def library_key(dataset: Dataset, embedder: str | Path) -> str:
    """What a library of the documents depends on: their bytes, the encoder, and the code that makes it."""
    key = hashlib.sha256(str(embedder).encode())
    for name, said in sorted(dataset.documents.items()):
        key.update(name.encode() + b"\0" + hashlib.sha256(_bytes(said)).digest())
    for source in sorted(Path(retrieval.__file__).parent.rglob("*.py")):
        key.update(source.read_bytes())
    return key.hexdigest()[:12]


def _bytes(said: Path | str) -> bytes:
    return said.encode("utf-8") if isinstance(said, str) else said.read_bytes()


def windows(texts: Mapping[str, str], words: int, characters: int) -> list[Span]:
    """Naive chunks: so many words one after the other, or so many characters of a text without spaces."""
    spans: list[Span] = []
    for name, text in texts.items():
        starts = _word_starts(text)
        step = words if len(text) < 20 * max(1, len(starts)) else None
        cuts = starts[::step] if step else list(range(0, len(text), characters))
        spans += [(name, a, b) for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return spans


def _word_starts(text: str) -> list[int]:
    spaces = np.array([True, *(character.isspace() for character in text)])
    return np.flatnonzero(spaces[:-1] & ~spaces[1:]).tolist()
