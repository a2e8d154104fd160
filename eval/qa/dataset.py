"""Questions with their documents, from files in SQuAD's format or in our own (README.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from eval.qa.scoring import LANGUAGES
from retrieval.parsing.sentences import sentences

FORMAT = "folio-qa/1"
_HINT = "Give a file of SQuAD's or XQuAD's format, or one of eval/qa/questions."
_LANGUAGE = re.compile(r"(?:^|[._-])([a-z]{2})(?=[._-]|$)")


@dataclass(frozen=True)
class Turn:
    """An earlier turn: what was asked, and the right answer to it."""

    question: str
    answer: str


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        document: name of the document that answers it, or seems to.
        answers: accepted answers; each is a tuple of strings that must all be there.
        gold: the sentences of the document that carry the answer, in its words; empty where nothing does.
        kinds: what is hard about it.
    """

    id: str
    document: str
    question: str
    answers: tuple[tuple[str, ...], ...]
    gold: tuple[str, ...]
    language: str = "en"
    kinds: tuple[str, ...] = ()
    history: tuple[Turn, ...] = ()

    @property
    def unanswerable(self) -> bool:
        return not self.answers


@dataclass(frozen=True)
class Dataset:
    """Questions, and all the documents that they are asked over.

    Attributes:
        documents: name → the file, or its text.
    """

    name: str
    items: tuple[Item, ...]
    documents: Mapping[str, Path | str] = field(default_factory=dict)

    def half(self, which: str | None) -> Dataset:
        """The questions about the first, or second, half of the documents; all for None. The documents stay."""
        if which is None:
            return self
        names = list(self.documents)
        kept = set(names[: len(names) // 2] if which == "first" else names[len(names) // 2 :])
        return replace(self, items=tuple(item for item in self.items if item.document in kept))

    def sample(self, limit: int | None, seed: int) -> Dataset:
        """At most `limit` of the questions, drawn with the seed, in the order of the file."""
        if limit is None or limit >= len(self.items):
            return self
        import numpy as np

        rows = np.sort(np.random.default_rng(seed).choice(len(self.items), limit, replace=False))
        return replace(self, items=tuple(self.items[row] for row in rows))


def load(path: Path, language: str | None = None) -> Dataset:
    """Read a file of either format.

    Args:
        language: of its questions; by default as the file says, by its name (``xquad.de.json``) or its rows.

    Raises:
        EvalError: there is no such file, it is of neither format, a document is missing, or nothing is known of how
            answers in the language are compared.
    """
    found = _read(path)
    if isinstance(found, dict) and found.get("format") == FORMAT:
        dataset = _own(path, found, language)
    elif isinstance(found, dict) and isinstance(found.get("data"), list):
        dataset = _squad(path, found["data"], language or _language_of(path))
    else:
        raise EvalError(f"{path} is neither of SQuAD's format nor of ours", hint=_HINT, param="data")
    if not dataset.items:
        raise EvalError(f"{path} holds no questions", hint=_HINT, param="data")
    for item in dataset.items:
        if item.language not in LANGUAGES:
            raise EvalError(
                f"there is no rule to compare answers in the language {item.language!r}",
                hint=f"Languages are {', '.join(sorted(LANGUAGES))}; name one with --language.",
                param="language",
            )
    return dataset


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise EvalError(f"cannot read {path}: {reason}.", hint=_HINT, param="data") from error
    except json.JSONDecodeError as error:
        raise EvalError(f"{path} is not JSON: {error}", hint=_HINT, param="data") from error


# -- SQuAD


def _squad(path: Path, articles: Sequence[Any], language: str) -> Dataset:
    """Each paragraph is a document, with a name that tells nothing of it."""
    documents: dict[str, Path | str] = {}
    items: list[Item] = []
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                name = f"paragraph-{len(documents) + 1:04d}.txt"
                documents[name] = text = paragraph["context"]
                items += [_squad_item(name, text, asked, language) for asked in paragraph["qas"]]
    except (KeyError, TypeError) as error:
        raise EvalError(
            f"{path} is not of SQuAD's format: {error!r} in an article", hint=_HINT, param="data"
        ) from error
    return Dataset(path.stem, tuple(items), documents)


def _squad_item(name: str, text: str, asked: Mapping[str, Any], language: str) -> Item:
    answers = [] if asked.get("is_impossible") else asked["answers"]
    gold = [one for answer in answers for one in _around(text, answer["answer_start"], len(answer["text"]))]
    return Item(
        str(asked["id"]),
        name,
        asked["question"],
        tuple(dict.fromkeys((answer["text"],) for answer in answers)),
        tuple(dict.fromkeys(gold)),
        language,
    )


def _around(text: str, start: int, length: int) -> Iterable[str]:
    """The sentences that hold the characters of an answer."""
    return [text[a:b] for a, b in sentences(text) if a < start + length and b > start]


def _language_of(path: Path) -> str:
    """``de`` of xquad.de.json; English where the name says nothing."""
    said = _LANGUAGE.findall(path.name.removesuffix(".json").lower())
    return said[-1] if said else "en"


# -- our own


def _own(path: Path, found: Mapping[str, Any], language: str | None) -> Dataset:
    try:
        documents = _documents(path, found["documents"])
        items = [_own_item(row, language) for row in found["questions"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise EvalError(f"{path} is not of our format: {error!r}", hint="It is said in eval/qa/README.md.") from error
    unknown = next((item for item in items if item.document not in documents), None)
    if unknown is not None:
        raise EvalError(f"{path}: {unknown.id} asks of a document {unknown.document!r} that is not listed")
    return Dataset(str(found.get("name") or path.stem), tuple(items), documents)


def _documents(path: Path, said: str | Mapping[str, str]) -> dict[str, Path | str]:
    """The files by name; paths are told from the folder of the file that lists them."""
    listed = path.parent / said if isinstance(said, str) else path
    named: Mapping[str, str] = _read(listed) if isinstance(said, str) else said
    files = {name: (listed.parent / file).resolve() for name, file in named.items()}
    missing = [file for file in files.values() if not file.is_file()]
    if missing:
        raise EvalError(
            f"{path} asks about a document that is not there: {missing[0]}",
            hint="The books lie in the folder `shared` beside the checkout.",
            param="data",
        )
    return dict(files)


def _own_item(row: Mapping[str, Any], language: str | None) -> Item:
    answers = () if row.get("unanswerable") else tuple(_alternative(one) for one in row["answers"])
    if not answers and not row.get("unanswerable"):
        raise KeyError(f"answers of {row['id']}")
    return Item(
        row["id"],
        row["document"],
        row["question"],
        answers,
        tuple(row["gold"]),
        language or row.get("language", "en"),
        tuple(row.get("kinds", ())),
        tuple(Turn(turn["question"], turn["answer"]) for turn in row.get("history", ())),
    )


def _alternative(said: str | list[str]) -> tuple[str, ...]:
    return (said,) if isinstance(said, str) else tuple(said)
