"""Tasks in the manner of RULER (Hsieh et al. 2024) at any size, without its essays and its word list.

Filler is RULER's repeated noise, or sentences of seeded words where RULER has essays; keys are pairs of words
from a short list of our own. Scores are comparable among engines here, not with published RULER scores. The two
tasks of questions over paragraphs are in `paragraphs.py`.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from eval.tasks.example import Example
from eval.tasks.infinitebench_style import NOISE

WORDS = yaml.safe_load((Path(__file__).parent / "words.yaml").read_text(encoding="utf-8"))
ADJECTIVES, NOUNS, VERBS = (WORDS[kind].split() for kind in ("adjectives", "nouns", "verbs"))
Needle = tuple[str, str]


def niah_single_1(rng: random.Random, size: int, depth: float) -> Example:
    """One key with one number in repeated noise."""
    key, number = _keys(rng, 1)[0], _number(rng)
    filler = [NOISE.strip()] * max(1, size)
    return _niah("niah_single_1", filler, [(key, number)], [depth], [key], [number])


def niah_single_2(rng: random.Random, size: int, depth: float) -> Example:
    """One key with one number among sentences."""
    key, number = _keys(rng, 1)[0], _number(rng)
    return _niah("niah_single_2", sentences(rng, size), [(key, number)], [depth], [key], [number])


def niah_single_3(rng: random.Random, size: int, depth: float) -> Example:
    """One key with one UUID among sentences."""
    key, value = _keys(rng, 1)[0], _uuid(rng)
    return _niah("niah_single_3", sentences(rng, size), [(key, value)], [depth], [key], [value], "uuid")


def niah_multikey(rng: random.Random, size: int, depth: float) -> Example:
    """Four keys with a number each, one of them asked for."""
    keys = _keys(rng, 4)
    needles = [(key, _number(rng)) for key in keys]
    depths = [depth, *(rng.random() for _ in keys[1:])]
    return _niah("niah_multikey", sentences(rng, size), needles, depths, keys[:1], [needles[0][1]])


def niah_multikey_2(rng: random.Random, size: int, depth: float) -> Example:
    """Nothing but keys with a number each, one of them asked for."""
    return _all_needles("niah_multikey_2", rng, size, depth, lambda: _long_key(rng), lambda: _number(rng), "number")


def niah_multikey_3(rng: random.Random, size: int, depth: float) -> Example:
    """Nothing but UUIDs with a UUID each, one of them asked for."""
    return _all_needles("niah_multikey_3", rng, size, depth, lambda: _uuid(rng), lambda: _uuid(rng), "uuid")


def niah_multivalue(rng: random.Random, size: int, depth: float) -> Example:
    """One key with four numbers, all asked for."""
    key = _keys(rng, 1)[0]
    needles = [(key, _number(rng)) for _ in range(4)]
    depths = [depth, *(rng.random() for _ in needles[1:])]
    return _niah("niah_multivalue", sentences(rng, size), needles, depths, [key], [n for _, n in needles])


def niah_multiquery(rng: random.Random, size: int, depth: float) -> Example:
    """Four keys with a number each, all asked for."""
    keys = _keys(rng, 4)
    needles = [(key, _number(rng)) for key in keys]
    depths = [depth, *(rng.random() for _ in keys[1:])]
    return _niah("niah_multiquery", sentences(rng, size), needles, depths, keys, [n for _, n in needles])


def vt(rng: random.Random, size: int, depth: float) -> Example:
    """A chain of five variables, each assigned the one before; all that hold the value are asked for."""
    names = _distinct(lambda: "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5)), 5)
    value = str(rng.randint(10000, 99999))
    steps = [f"VAR {names[0]} = {value}"]
    steps += [f"VAR {name} = VAR {before}" for before, name in itertools.pairwise(names)]
    lines = [NOISE.strip()] * max(len(steps), size)
    for offset, at in enumerate(sorted(rng.sample(range(len(lines)), len(steps)))):
        lines.insert(at + offset, steps[offset])
    asked = (
        f"Question: Find all variables that are assigned the value {value} in the text above. Answer: According to "
        f"the chain(s) of variable assignment in the text above, {len(names)} variables are assigned the value "
        f"{value}, they are: "
    )
    question = f"Which variables are assigned the value {value}?"
    return Example("", "vt-style", "\n".join(lines), asked, names, (), question)


def cwe(rng: random.Random, size: int, depth: float) -> Example:
    """A list of `size` words: ten of them thirty times each among words three times each (in short lists three
    times among once); the ten are asked for."""
    common, often = 10, min(30, max(3, size // 20))
    seldom = max(1, often // 10)
    words = _distinct(lambda: _pseudoword(rng), common + max(1, (size - common * often) // seldom))
    listed = words[:common] * often + words[common:] * seldom
    rng.shuffle(listed)
    context = " ".join(f"{number}. {word}" for number, word in enumerate(listed, start=1))
    asked = (
        "Question: What are the 10 most common words in the above list? Answer: The top 10 words that appear most "
        "often in the list are:"
    )
    return Example("", "cwe-style", context, asked, words[:common], (), "Which words appear most often?")


def fwe(rng: random.Random, size: int, depth: float) -> Example:
    """Coded words whose frequency falls with the square of their rank (the first is noise); three are asked for."""
    total = 40 * max(1, size)
    counts = []
    for rank in range(1, max(60, total // 50) + 1):
        count = int(total * rank**-2.0 / 1.6449340668482264)  # zeta(2)
        if count == 0:
            break
        counts.append(count)
    words = ["...", *_distinct(lambda: "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)), len(counts) - 1)]
    text = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
    rng.shuffle(text)
    asked = (
        "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
        "appeared words in the above coded text? Answer: According to the coded text above, the three most frequently "
        "appeared words are:"
    )
    question = "Which three words appear most often?"
    return Example("", "fwe-style", " ".join(text), asked, words[1:4], (), question)


def _all_needles(
    name: str,
    rng: random.Random,
    size: int,
    depth: float,
    make_key: Callable[[], str],
    make_value: Callable[[], str],
    kind: str,
) -> Example:
    """A haystack of `size` needles, and the one that is asked for at its depth."""
    key, *others = _distinct(make_key, max(1, size) + 1)
    filler = [_needle(other, make_value(), kind) for other in others]
    value = make_value()
    return _niah(name, filler, [(key, value)], [depth], [key], [value], kind)


def _needle(key: str, value: str, kind: str) -> str:
    return f"One of the special magic {kind}s for {key} is: {value}."


def _niah(
    name: str,
    filler: list[str],
    needles: Sequence[Needle],
    depths: Sequence[float],
    keys: Sequence[str],
    answers: Sequence[str],
    kind: str = "number",
) -> Example:
    """Needles put at their depths of the filler; the question asks for all that belongs to `keys`."""
    lines = list(filler)
    placed = sorted(zip(depths, needles, strict=True), reverse=True)
    for depth, (key, value) in placed:
        lines.insert(round(depth * len(filler)), _needle(key, value, kind))
    query = keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + ", and " + keys[-1]
    asked = (
        f"What are all the special magic {kind}s for {query} mentioned in the provided text? The special magic "
        f"{kind}s for {query} mentioned in the provided text are"
    )
    question = f"What are the special magic {kind}s for {query}?"
    groups = {"depth": depths[0]}
    return Example("", f"{name}-style", "\n".join(lines), asked, list(answers), (), question, groups)


def sentences(rng: random.Random, size: int) -> list[str]:
    """`size` sentences of seeded words, at least one."""
    return [
        f"The {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(VERBS)} the "
        f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}."
        for _ in range(max(1, size))
    ]


def _keys(rng: random.Random, count: int) -> list[str]:
    return _distinct(lambda: f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}", count)


def _long_key(rng: random.Random) -> str:
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}-{rng.choice(NOUNS)}"


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _number(rng: random.Random) -> str:
    return str(rng.randint(1_000_000, 9_999_999))


def _pseudoword(rng: random.Random) -> str:
    syllables = rng.randint(2, 3)
    return "".join(rng.choice("bdfgklmnprstv") + rng.choice("aeiou") for _ in range(syllables)) + rng.choice("nrst")


def _distinct(make: Callable[[], str], count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(make())
    return list(found)
