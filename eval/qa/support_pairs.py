"""Pairs of a claim and its evidence, right and false, on which the rule of support is set and measured.

Three sources. By hand (`support_hand.txt`): paragraphs, each with claims that it carries (+) and that it does not (-).
By rule, seeded (`support_passages.json`): sentences as they stand, and the same with one change. From real models
(`support_models.json`): what they answered over given paragraphs, each claim read and judged. Each paragraph belongs to
one half: what is set is set on the development half, what is reported is the other. XQuAD is CC BY-SA 4.0.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eval.errors import EvalError
from retrieval.parsing.sentences import sentences

HERE = Path(__file__).parent
Half = Literal["development", "held-out"]
HALVES: tuple[Half, Half] = ("development", "held-out")


@dataclass(frozen=True)
class Pair:
    """A claim over passages. ``right``: they carry it, whole.

    Attributes:
        kind: how the claim differs from the text, or the model that wrote it.
        before: what the same answer said before it.
    """

    source: str
    half: Half
    kind: str
    passages: tuple[str, ...]
    claim: str
    right: bool
    before: str = ""


def pairs() -> list[Pair]:
    """All of them, the same every time. Raises EvalError where the files of a checkout are not."""
    if not (HERE / "support_hand.txt").is_file():
        raise EvalError("The installed package has no judged pairs.", hint="Run this in a checkout of Folio.")
    return [*by_hand(), *by_rule(), *by_models()]


def by_hand() -> Iterator[Pair]:
    """Blocks of ``@name passage`` and lines of ``+kind claim`` or ``-kind claim``; those named dev are of that half."""
    blocks = re.split(r"^@", (HERE / "support_hand.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    for number, block in enumerate(blocks):
        half = HALVES[0 if block.startswith("dev ") else number % 2]
        head, *claims = re.split(r"^(?=[+-][a-z]+ )", block.rstrip("\n"), flags=re.MULTILINE)
        passage = head.partition(" ")[2].strip()
        for line in claims:
            kind, _, claim = line[1:].strip("\n").partition(" ")
            yield Pair("hand", half, kind, (passage,), claim, line[0] == "+")


def by_rule(seed: int = 0) -> Iterator[Pair]:
    """Sentences of stored paragraphs, whole and each with one change that a rule makes."""
    rng = random.Random(seed)
    stored = json.loads((HERE / "support_passages.json").read_text(encoding="utf-8"))
    for number, passage in enumerate(stored):
        text, half = passage["text"], HALVES[number % 2]
        found = [text[a:b] for a, b in sentences(text)]
        found = [each for each in found if 6 <= len(each.split()) <= 45 and each[-1] == "." and each[0].isalnum()]
        for sentence in rng.sample(found, min(3, len(found))):
            yield Pair("rule", half, "verbatim", (text,), sentence, True)
            for right, changes in ((True, SAME), (False, CHANGES)):
                for kind, change in changes.items():
                    changed = change(sentence, text, rng)
                    if changed is not None and changed not in text and changed != sentence:
                        yield Pair("rule", half, kind, (text,), changed, right)


def by_models() -> Iterator[Pair]:
    """The claims of real answers that a person called right or wrong; those left open are left out."""
    for answer in json.loads((HERE / "support_models.json").read_text(encoding="utf-8")):
        before = ""
        for claim in answer["claims"]:
            if claim["right"] is not None:
                yield Pair(
                    "model",
                    answer["half"],
                    answer["model"],
                    tuple(answer["passages"]),
                    claim["text"],
                    claim["right"],
                    before,
                )
            before = f"{before} {claim['text']}".strip()


def _framed(sentence: str, text: str, _: random.Random) -> str | None:
    german, spanish = re.search(r"\b(?:der|und|wurde)\b", text), re.search(r"\b(?:el|los|que)\b", text)
    lead = "Laut dem Text: " if german else "Según el texto, " if spanish else "According to the document, "
    return lead + sentence


def _figures(sentence: str, _: str, __: random.Random) -> str | None:
    """Thousands without their mark, small numbers as digits or words, a date the other way round."""
    words = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
    changed = re.sub(r"\b(\d{1,3}),(\d{3})\b", r"\1\2", sentence)
    changed = re.sub(r"\b([A-Z][a-z]{2,8}) (\d{1,2}), (\d{4})\b", r"\2 \1 \3", changed)
    return re.sub(r"\b(" + "|".join(words) + r")\b(?!-)", lambda found: str(words[found[0]]), changed)


def _unbracketed(sentence: str, _: str, __: random.Random) -> str | None:
    return re.sub(r" \([^()]*\)", "", sentence)


SAME: dict[str, Callable[[str, str, random.Random], str | None]] = {
    "framed": _framed,
    "figures": _figures,
    "unbracketed": _unbracketed,
}


def _digit(sentence: str, _: str, rng: random.Random) -> str | None:
    places = [found.start() for found in re.finditer(r"\d", sentence)]
    if not places:
        return None
    at = rng.choice(places)
    other = rng.choice([digit for digit in "123456789" if digit != sentence[at]])
    return sentence[:at] + other + sentence[at + 1 :]


_NAME = re.compile(r"(?<=[a-zß-ÿ,] )[A-ZÄÖÜ][a-zß-ÿ]{3,}(?: [A-ZÄÖÜ][a-zß-ÿ]{3,})*")
_NOT = re.compile(r"\b(?:not|never|no|nicht|kein\w*|nie)\s|n't\b")
_AUXILIARY = re.compile(r"\b(?:is|are|was|were|has|have|had|can|could|would|will)\b")
_OPPOSITES = [
    ("increase", "decrease"),
    ("before", "after"),
    ("more", "less"),
    ("first", "last"),
    ("large", "small"),
    ("high", "low"),
    ("many", "few"),
    ("all", "some"),
    ("most", "few"),
    ("north", "south"),
    ("east", "west"),
    ("early", "late"),
    ("may", "must"),
    ("above", "below"),
    ("mehr", "weniger"),
    ("vor", "nach"),
    ("viele", "wenige"),
    ("más", "menos"),
    ("antes", "después"),
]


def _other_name(sentence: str, text: str, rng: random.Random) -> str | None:
    names = sorted({name for name in _NAME.findall(text) if name not in sentence})
    own = _NAME.findall(sentence)
    return sentence.replace(rng.choice(own), rng.choice(names), 1) if own and names else None


def _two_names(sentence: str, _: str, rng: random.Random) -> str | None:
    own = list(dict.fromkeys(_NAME.findall(sentence)))
    if len(own) < 2:
        return None
    one, other = rng.sample(own, 2)
    listed = rf"(?:{re.escape(one)}|{re.escape(other)}),? (?:and|or|und|y|,) (?:{re.escape(one)}|{re.escape(other)})"
    if one in other or other in one or re.search(listed, sentence):
        return None
    return sentence.replace(one, "\0").replace(other, one).replace("\0", other)


def _without_not(sentence: str, _: str, __: random.Random) -> str | None:
    return _NOT.sub("", sentence, count=1) if _NOT.search(sentence) else None


def _with_not(sentence: str, _: str, __: random.Random) -> str | None:
    found = _AUXILIARY.search(sentence)
    return f"{sentence[: found.end()]} not{sentence[found.end() :]}" if found else None


def _opposite(sentence: str, _: str, rng: random.Random) -> str | None:
    known = {word: other for one, two in _OPPOSITES for word, other in ((one, two), (two, one))}
    places = [found for found in re.finditer(r"\b[a-zß-ÿ]+", sentence) if found[0] in known]
    if not places:
        return None
    found = rng.choice(places)
    return sentence[: found.start()] + known[found[0]] + sentence[found.end() :]


def _two_halves(sentence: str, text: str, rng: random.Random) -> str | None:
    others = [text[a:b] for a, b in sentences(text) if text[a:b] != sentence and len(text[a:b].split()) > 8]
    if not others:
        return None
    one, other = sentence.split(), rng.choice(others).split()
    return " ".join([*one[: len(one) // 2], *other[len(other) // 2 :]])


def _cut(sentence: str, _: str, rng: random.Random) -> str | None:
    at = rng.randrange(len(sentence) // 2, len(sentence) - 3)
    return sentence[:at].rstrip() + "\ufffd"


def _loop(sentence: str, _: str, __: random.Random) -> str | None:
    words = sentence[:-1].split()
    return " ".join([*words, *words[-5:], *words[-5:], *words[-5:]]) + "."


CHANGES: dict[str, Callable[[str, str, random.Random], str | None]] = {
    "digit": _digit,
    "name": _other_name,
    "swap": _two_names,
    "negation": _without_not,
    "not": _with_not,
    "antonym": _opposite,
    "halves": _two_halves,
    "cut": _cut,
    "loop": _loop,
}
