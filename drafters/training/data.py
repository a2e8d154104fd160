"""What a drafter is trained on: passages of texts as they stand, and the target's answers to questions about them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drafters.errors import DrafterError
from drafters.protocols import Teacher

TEXTS, PROMPTS = (".txt", ".md", ".rst"), (".jsonl",)
_ASKS = (
    "Summarize this passage:\n\n{}",
    "{}\n\nContinue this text.",
    "Explain in your own words what happens here:\n\n{}",
    "Read the text and write three questions about it, with their answers.\n\n{}",
    "{}\n\nWhat is the main idea of this text? Give reasons.",
    "Rewrite this in plain, modern English:\n\n{}",
    "Write a letter to a friend about the following.\n\n{}",
    "{}\n\nList the most important points.",
    "{}\n\nWhat does the text say about {about}?",
    "Here is a text.\n\n{}\n\nAnswer from it: what of {about}?",
)
_SHORTEST = 48  # tokens of a sequence that is worth training on


@dataclass(frozen=True)
class Piece:
    """A sequence before the target has seen it: a passage, or a prompt whose answer is still to come."""

    token_ids: tuple[int, ...]
    asks: bool


def pieces(paths: Sequence[Path], teacher: Teacher, tokens: int, length: int, answers: float, seed: int) -> list[Piece]:
    """Sequences of at most `length` tokens, about `tokens` of them together, in an order that `seed` decides.

    A share `answers` of the tokens is for prompts: those of .jsonl files (a line's `prompt`, `question` or first of
    `turns`) that leave half of `length` for an answer, and where these are not enough, passages of the texts with
    something to do about them.

    Raises:
        DrafterError: there is nothing to read, or too little of it.
    """
    files = list(_files(paths))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files if file.suffix in TEXTS]
    asked = [prompt for file in files if file.suffix in PROMPTS for prompt in _prompts(file)]
    ids = [token for text in texts for token in teacher.encode(text)]
    order = random.Random(seed)
    order.shuffle(asked)
    fitting = [prompt for prompt in map(teacher.ask, asked) if len(prompt) <= length // 2]
    if len(ids) < 2 * _SHORTEST and not fitting:
        named = ", ".join(map(str, paths))
        raise DrafterError(
            f"there is nothing to learn from in {named}: {len(ids)} tokens of {', '.join(TEXTS)} and no prompt of at "
            f"most {length // 2} tokens in {', '.join(PROMPTS)}"
        )
    wanted = int(tokens * answers)
    made = [Piece(tuple(prompt), asks=True) for prompt in fitting[: 1 + wanted // length]]
    while ids and len(made) * length < wanted:
        passage = teacher.decode(_passage(ids, length // 3, order))
        made.append(Piece(tuple(teacher.ask(_asked(passage, order))[: length // 2]), asks=True))
    starts = list(range(0, len(ids) - _SHORTEST, length))
    order.shuffle(starts)
    rest = max(0, tokens - wanted)
    made += [Piece(tuple(ids[start : start + length]), asks=False) for start in starts[: -(-rest // length)]]
    order.shuffle(made)
    return [piece for piece in made if piece.asks or len(piece.token_ids) >= _SHORTEST]


def answered(made: Sequence[Piece], teacher: Teacher, length: int, temperature: float, seed: int) -> list[list[int]]:
    """The token ids of pieces, prompts with the target's answers behind them up to `length` tokens in all."""
    asking = [piece for piece in made if piece.asks]
    answers: Iterator[list[int]] = iter(
        teacher.answers([list(p.token_ids) for p in asking], length // 2, temperature, seed) if asking else []
    )
    return [[*piece.token_ids, *(next(answers) if piece.asks else ())] for piece in made]


def _passage(ids: Sequence[int], count: int, order: random.Random) -> list[int]:
    start = order.randrange(max(1, len(ids) - count))
    return list(ids[start : start + count])


def _asked(passage: str, order: random.Random) -> str:
    """Something to do about a passage, or a question about some words of it."""
    words = passage.split()
    first = order.randrange(max(1, len(words) - 4))
    return order.choice(_ASKS).format(passage, about=" ".join(words[first : first + 4]))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.suffix in TEXTS + PROMPTS)
        elif path.is_file():
            yield path
        else:
            raise DrafterError(f"there is no {path} to train on")


def _prompts(file: Path) -> Iterator[str]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            yield str(row.get("prompt") or row.get("question") or row["turns"][0])
        except (ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
            raise DrafterError(f"line {number} of {file} holds no prompt, question or turns") from error
