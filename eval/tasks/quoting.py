"""Questions over any folder of text whose answer is one of its sentences, word for word.

A question names words that together occur in one sentence of the context only, so the answer is known
without a model and without annotation. Questions are asked about held-out documents alone: one in five by
the hash of its text, or the first by hash where the folder is too small, so that a model trained on the other
documents can be tested on the same folder.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from eval.errors import EvalError
from eval.tasks.example import Example
from service.reader.sentences import split

TEXT_SUFFIXES = (".txt", ".md", ".rst")
HELD_OUT_IN = 5
_WORD = re.compile(r"[A-Za-z][a-z]{4,}")


@dataclass(frozen=True)
class Document:
    """A file of text as its sentences."""

    name: str
    digest: str
    sentences: tuple[str, ...]


def read_folder(folder: Path) -> list[Document]:
    """The text files of a folder, held-out documents only, in the order of their hashes.

    Raises:
        EvalError: the folder holds no text of at least eight sentences.
    """
    if not folder.is_dir():
        raise EvalError(f"{folder} is not a folder of text", hint="Give a folder with .txt, .md or .rst files.")
    documents = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in TEXT_SUFFIXES and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            sentences = tuple(sentence.words for sentence in split(text))
            if len(sentences) >= 8:
                digest = hashlib.sha256(text.encode()).hexdigest()
                documents.append(Document(str(path.relative_to(folder)), digest, sentences))
    if not documents:
        raise EvalError(f"{folder} holds no text of eight sentences or more", hint="Give .txt, .md or .rst files.")
    documents.sort(key=lambda document: document.digest)
    return [d for d in documents if int(d.digest, 16) % HELD_OUT_IN == 0] or documents[:1]


class QuoteMaker:
    """Makes examples of `size` sentences of the held-out documents, the answer at `depth`."""

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents

    def __call__(self, rng: random.Random, size: int, depth: float) -> Example:
        """The question's document comes first; the others fill up what it lacks.

        Raises:
            EvalError: no sentence there can be asked for by words of its own.
        """
        first = rng.randrange(len(self.documents))
        pool = [s for i in range(len(self.documents)) for s in self._at(first + i).sentences]
        if size > len(pool):
            raise EvalError(
                f"the held-out text has {len(pool)} sentences, {size} are needed at this length",
                hint="Give a larger folder with --text, or a smaller --length.",
            )
        size = max(1, size)
        start = rng.randrange(max(1, min(len(self._at(first).sentences), len(pool) - size + 1)))
        window = pool[start : start + size]
        spread = Counter(word for sentence in window for word in _words(sentence))
        target = round(depth * (size - 1))
        for at in sorted(range(size), key=lambda index: abs(index - target)):
            words = _telling(window[at], spread)
            if words and window.count(window[at]) == 1 and _only(words, window):
                question = f"Where are {', '.join(words[:-1])} and {words[-1]} mentioned?"
                groups = {"depth": depth}
                return Example("", "quote", "\n".join(window), question, window[at], (), question, groups)
        raise EvalError(f"no sentence of {self._at(first).name} can be asked for by words of its own")

    def _at(self, index: int) -> Document:
        return self.documents[index % len(self.documents)]


def _words(sentence: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(sentence)}


def _telling(sentence: str, spread: Counter[str]) -> list[str]:
    """The three rarest words of a sentence of ordinary length, in their order; () where it has too few."""
    if not 40 <= len(sentence) <= 250:
        return []
    rarest = sorted(_words(sentence), key=lambda word: (spread[word], word))[:3]
    said = [word.lower() for word in _WORD.findall(sentence)]
    return sorted(rarest, key=said.index) if len(rarest) == 3 else []


def _only(words: list[str], window: list[str]) -> bool:
    wanted = set(words)
    return sum(wanted <= _words(sentence) for sentence in window) == 1
