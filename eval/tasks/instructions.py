"""Prompts that a drafter is trained on: what people ask a model for, from templates and the paragraphs of a file.

A drafter learns the target's own answers, so its prompts should be of the kinds that it will meet: writing, roles,
explanations, code, arithmetic, reasoning, and questions, summaries, extraction and translation over a passage.
"""

from __future__ import annotations

import random
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import yaml

from eval.errors import EvalError
from eval.qa.dataset import Dataset

MADE_OF = Path(__file__).with_suffix(".yaml")
_TEMPLATES = ("writing", "roles", "explaining", "coding")
_MOST_LETTERS = 800
"""of a passage in a prompt: what a small model answers well"""


def instructions(count: int, seed: int, asked: Dataset, foreign: Dataset | None = None) -> list[str]:
    """``count`` prompts, all different, in a random order; fewer where no more can be made.

    Args:
        asked: questions and the paragraphs that they are about.
        foreign: paragraphs in German, which a prompt asks to be translated; without them none does.
    """
    draw, made_of = random.Random(seed), yaml.safe_load(MADE_OF.read_text(encoding="utf-8"))
    over, short = made_of["over_a_passage"], _passages(asked)
    if not short:
        raise EvalError(f"no paragraph of {asked.name} has at most {_MOST_LETTERS} letters")

    def about(kind: str, passage: str, **more: str) -> str:
        return draw.choice(over[kind]).format(passage=passage, **more)

    short_asked = [item for item in asked.items if item.document in short]
    kinds = [
        *(
            [template.format(one) for template in made_of[kind]["templates"] for one in made_of[kind]["about"]]
            for kind in _TEMPLATES
        ),
        made_of["reasoning"],
        [_sum(made_of, draw) for _ in range(count)],
        [item.question for item in asked.items],
        [about("question", short[item.document], question=item.question) for item in short_asked],
        *([about(kind, text) for text in short.values()] for kind in ("summary", "extraction")),
        [about("translation", text) for text in (_passages(foreign).values() if foreign else ())],
    ]
    for kind in kinds:
        draw.shuffle(kind)
    in_turn = (one for row in zip_longest(*kinds) for one in row if one is not None)
    chosen = list(islice(dict.fromkeys(in_turn), count))
    draw.shuffle(chosen)
    return chosen


def _passages(dataset: Dataset) -> dict[str, str]:
    """The short paragraphs, by their names."""
    return {
        name: text for name, text in dataset.documents.items() if isinstance(text, str) and len(text) <= _MOST_LETTERS
    }


def _sum(made_of: dict[str, Any], draw: random.Random) -> str:
    one, other = draw.sample(made_of["names"], 2)
    return draw.choice(made_of["arithmetic"]).format(n=one, m=other, **{name: draw.randint(2, 12) for name in "abcd"})
