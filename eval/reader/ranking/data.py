"""Questions that people asked, with the sentences of the passage that answers and of passages that do not.

Two sets, both over Wikipedia: SelQA (Jurczyk et al. 2016, arXiv 1606.08513; Apache-2.0), whole sections with every
answering sentence marked, and the sentence-question pairs of Du et al. 2017 (arXiv 1705.00106; CC BY-SA 4.0), made of
SQuAD's training articles: lower-cased, tokenised, one sentence marked. `prepare` leaves out what evaluation reads.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from eval.errors import EvalError

Encode = Callable[[Sequence[str]], np.ndarray]
WINDOW_CHARS = 900
"""of a passage: about 190 tokens of MiniLM, as the library's chunks have"""
HELD_SHARE = 0.2
"""of the articles: kept from training, for development"""
PAIRS, PAIRS_HELD = "pairs", "pairs, held"
"""Articles are not marked in the pairs: those at the file's end are held."""
_UNTOKENISED = (
    (re.compile(r"-lrb- ?"), "("),
    (re.compile(r" ?-rrb-"), ")"),
    (re.compile(r"`` ?"), '"'),
    (re.compile(r" ?''"), '"'),
    (re.compile(r" ([,.;:?!%])(?= |$)"), r"\1"),
    (re.compile(r" (n't|'s|'re|'ve|'d|'ll|'m|')(?= |$)"), r"\1"),
    (re.compile(r"([$£€]) (?=\d)"), r"\1"),
)


@dataclass(frozen=True)
class Passage:
    """Sentences that stand together. context: the headings above them."""

    sentences: tuple[str, ...]
    context: str = field(default="", compare=False)

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


@dataclass(frozen=True)
class Example:
    """A question, passages, and for each which of its sentences answer.

    Attributes:
        article: of the answer; no article stands in training and in development.
        other: numbers of passages of the pool that do not answer, the nearest first.
    """

    question: str
    article: str
    passages: tuple[tuple[Passage, frozenset[int]], ...]
    other: tuple[int, ...] = field(default=())


def read_selqa(path: Path) -> list[Example]:
    """The questions of a ``selqa-ass-*.json``, each with its section cut into passages."""
    examples = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        sentences = [str(sentence).strip() for sentence in row["candidates"]]
        answers = frozenset(row["answers"])
        context = " › ".join(dict.fromkeys((row["article"], row["section"])))
        cut = [
            (Passage(tuple(sentences[start:end]), context), frozenset(a - start for a in answers if start <= a < end))
            for start, end in _windows(sentences)
        ]
        if any(marked for _, marked in cut):
            examples.append(Example(row["question"].strip(), row["article"], tuple(cut)))
    return examples


def read_pairs(sources: Path, questions: Path) -> list[Example]:
    """The pairs of a ``src-*.txt`` and its ``tgt-*.txt``; a passage is a run of sentences that were asked about."""
    sentences = [untokenised(line) for line in sources.read_text(encoding="utf-8").splitlines()]
    asked = [untokenised(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    if len(sentences) != len(asked):
        raise EvalError(f"{sources} and {questions} have not the same number of lines")
    order = list(dict.fromkeys(sentences))
    place: dict[str, tuple[int, int]] = {}
    passages: list[Passage] = []
    for start, end in _windows(order):
        place |= {sentence: (len(passages), at) for at, sentence in enumerate(order[start:end])}
        passages.append(Passage(tuple(order[start:end])))
    held = len(passages) * (1 - HELD_SHARE / 2)  # the articles at the file's end
    return [
        Example(
            question, PAIRS_HELD if place[s][0] >= held else PAIRS, ((passages[place[s][0]], frozenset([place[s][1]])),)
        )
        for s, question in zip(sentences, asked, strict=True)
        if len(question.split()) > 2
    ]


def untokenised(line: str) -> str:
    """Text as people write it, as far as MiniLM, which reads no case, can tell."""
    line = line.strip()
    for pattern, replacement in _UNTOKENISED:
        line = pattern.sub(replacement, line)
    return line


@dataclass(frozen=True)
class Sets:
    """Examples to train on and to develop with, and the passages that stand beside them."""

    train: list[Example]
    dev: list[Example]
    pool: list[Passage]


def prepare(
    selqa: Sequence[Path],
    pairs: Sequence[Path] | None,
    kept: Sequence[Path],
    encode: Encode,
    cache: Path,
    seed: int = 0,
) -> Sets:
    """The two sets, parted by article; `cache` keeps what takes minutes, the nearest other passages.

    An example that shares eight words in a row with a paragraph of the SQuAD-like files `kept`, which evaluation reads,
    is in neither.
    """
    examples = [e for path in selqa for e in read_selqa(path)]
    articles = sorted({e.article for e in examples})
    held = set(random.Random(seed).sample(articles, round(len(articles) * HELD_SHARE))) | {PAIRS_HELD}
    examples += read_pairs(*pairs) if pairs else []
    examples = without(examples, [text for path in kept for text in paragraphs(path)])
    pool = list(dict.fromkeys(passage for example in examples for passage, _ in example.passages))
    if not cache.exists():
        found = other_passages(examples, encode, pool)
        cache.write_text(json.dumps(found), encoding="utf-8")
    others = json.loads(cache.read_text(encoding="utf-8"))
    if len(others) != len(examples):
        raise EvalError(f"{cache} was made of other questions", hint="Delete it.")
    examples = [replace(e, other=tuple(other)) for e, other in zip(examples, others, strict=True)]
    return Sets([e for e in examples if e.article not in held], [e for e in examples if e.article in held], pool)


def paragraphs(path: Path) -> list[str]:
    """Of a file as SQuAD has them."""
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    return [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]


def without(examples: Iterable[Example], kept: Sequence[str]) -> list[Example]:
    """The examples that share no eight words in a row with the texts `kept`."""
    known = {run for text in kept for run in _runs(text)}
    return [e for e in examples if all(known.isdisjoint(_runs(passage.text)) for passage, _ in e.passages)]


def other_passages(examples: Sequence[Example], encode: Encode, pool: Sequence[Passage]) -> list[list[int]]:
    """For each example the passages of `pool` that are nearest to its question and share no sentence with it.

    encode: texts -> float32[n, d] of norm 1, the retriever's.
    """
    vectors = encode([passage.text for passage in pool])
    asked = encode([example.question for example in examples])
    found = []
    for example, vector in zip(examples, asked, strict=True):
        own = {s for passage, _ in example.passages for s in passage.sentences}
        near = [int(n) for n in np.argsort(-(vectors @ vector))[:24]]
        found.append([n for n in near if own.isdisjoint(pool[n].sentences)][:8])
    return found


def shuffled(examples: Sequence[Example], seed: int, epoch: int) -> list[Example]:
    order = list(examples)
    random.Random(seed * 1000 + epoch).shuffle(order)
    return order


def _windows(sentences: Sequence[str]) -> list[tuple[int, int]]:
    found, start, size = [], 0, 0
    for at, sentence in enumerate(sentences):
        if at > start and size + len(sentence) > WINDOW_CHARS:
            found.append((start, at))
            start, size = at, 0
        size += len(sentence) + 1
    return [*found, (start, len(sentences))] if start < len(sentences) else found


def _runs(text: str, words: int = 8) -> list[tuple[str, ...]]:
    found = re.findall(r"\w+", text.lower())
    return [tuple(found[at : at + words]) for at in range(len(found) - words + 1)]
