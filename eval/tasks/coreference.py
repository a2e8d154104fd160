"""A request that comes several times in a long conversation, one of its answers asked for: as MRCR's (2409.12640).

The conversation asks for short texts, of some kind, about some subject; four times for the same kind and subject. Asked
is one of these four again, word for word, behind a code that the answer must begin with.
"""

from __future__ import annotations

import random

from eval.tasks.example import Example
from eval.tasks.ruler_style import NOUNS, sentences

KINDS = ("poem", "riddle", "letter", "news item", "recipe", "short speech")
ORDINALS = ("first", "second", "third", "fourth")
_LINES = 3  # of one of the texts


def coreference(rng: random.Random, size: int, depth: float) -> Example:
    """Four answers to the same request among `size` others; `depth` chooses which of the four is asked for."""
    asked = (rng.choice(KINDS), rng.choice(NOUNS))
    others = [(kind, noun) for kind in KINDS for noun in NOUNS if (kind, noun) != asked]
    turns = [(rng.choice(others), _text(rng)) for _ in range(max(1, size))]
    wanted = [_text(rng) for _ in ORDINALS]
    for offset, at in enumerate(sorted(rng.choices(range(len(turns) + 1), k=len(wanted)))):
        turns.insert(at + offset, (asked, wanted[offset]))
    context = "\n\n".join(f"User: Write a {kind} about a {noun}.\nAssistant: {text}" for (kind, noun), text in turns)
    which = min(int(depth * len(ORDINALS)), len(ORDINALS) - 1)
    code = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=10))
    kind, noun = asked
    question = f"Prepend {code} to the {ORDINALS[which]} {kind} about a {noun}. Do not include any other text."
    answer = f"{code} {wanted[which]}"
    return Example("", "coreference-style", context, question, answer, (), question, {"which": ORDINALS[which]})


def _text(rng: random.Random) -> str:
    return " ".join(sentences(rng, _LINES))
