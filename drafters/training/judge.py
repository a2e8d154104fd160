"""Training a judge (arXiv 2501.19309): which tokens of an answer are right, from the target's states after them.

The data are lines of JSON: a `prompt`, an `answer` to it, which need not be the target's own, and under `wrong` the
parts of the answer that are wrong, word for word; where nothing is wrong, none. Right and wrong tokens count the same
together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from drafters.errors import DrafterError
from drafters.heads.folder import is_head
from drafters.heads.head import LAST
from drafters.models.judge import Judge
from drafters.protocols import Teacher

_STEPS, _DECAY = 300, 1e-2


@dataclass(frozen=True)
class Marked:
    """An answer to a prompt, as token ids, and whether each of its tokens is right."""

    prompt: list[int]
    answer: list[int]
    right: list[bool]


def train_judge(teacher: Teacher, data: Sequence[Path], folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Train a judge for the target and write it beside the trained drafter of a folder.

    Returns on every tenth answer, which it did not see, the shares of right and of wrong tokens that it accepts.

    Raises:
        DrafterError: the folder holds no trained drafter, or the data cannot be read or hold too few answers or tokens
            of one kind.
    """
    if not is_head(folder):
        raise DrafterError(f"a judge stands beside a trained drafter, and there is none in {folder}: train one first")
    marked = [one for file in data for one in _marked(file, teacher)]
    if len(marked) < 10:
        raise DrafterError(
            f"{len(marked)} answers are too few to train a judge on and to hold some out: give 10 or more"
        )
    report(f"{len(marked)} answers; the target reads them")
    rows = [_states(teacher, one) for one in marked]
    taught, held = ([row for i, row in enumerate(rows) if (i % 10 == 0) == out] for out in (False, True))
    (states, right), (held_states, held_right) = (map(torch.cat, zip(*part, strict=True)) for part in (taught, held))
    for kind in (True, False):
        if not (right == kind).any() or not (held_right == kind).any():
            raise DrafterError(
                f"no token is {'right' if kind else 'wrong'} in some part of the data: mark more answers"
            )
    judge = _fitted(states, right)
    judge.save(folder, teacher)
    accepted = judge.right(held_states) > 0.5
    return {
        "answers": len(marked),
        "tokens": len(right) + len(held_right),
        "wrong": int((~right).sum() + (~held_right).sum()),
        "right_accepted": float(accepted[held_right].float().mean()),
        "wrong_accepted": float(accepted[~held_right].float().mean()),
    }


def _fitted(states: Tensor, right: Tensor) -> Judge:
    """Logistic regression on states [n, hidden]."""
    mean, scale = states.mean(0), states.std(0) + 1e-6
    x, y = (states - mean) / scale, right.float()
    counts = torch.where(right, 0.5 / y.mean(), 0.5 / (1 - y).mean())
    weight, bias = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=1e-2, weight_decay=_DECAY)
    for _ in range(_STEPS):
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(x @ weight + bias, y, counts).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    weight, bias = weight.detach() / scale, bias.detach()
    return Judge(weight, bias - mean @ weight)


def _states(teacher: Teacher, one: Marked) -> tuple[Tensor, Tensor]:
    """The last layer's states after an answer's tokens, and whether they are right."""
    states, _ = teacher.states([*one.prompt, *one.answer], (LAST,))
    return states[len(one.prompt) :, 0], torch.tensor(one.right)


def _marked(file: Path, teacher: Teacher) -> Iterator[Marked]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DrafterError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            prompt, answer, wrong = str(row["prompt"]), str(row["answer"]), [str(part) for part in row.get("wrong", ())]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DrafterError(f"line {number} of {file} holds no prompt and answer: {error}") from error
        if absent := next((part for part in wrong if part not in answer), None):
            raise DrafterError(f"line {number} of {file}: {absent!r} is marked wrong and does not stand in the answer")
        ids = teacher.encode(answer)
        ends = [len(teacher.decode(ids[: i + 1])) for i in range(len(ids))]
        spans = [(answer.index(part), answer.index(part) + len(part)) for part in wrong]
        right = [not any(start < stop and first < end for first, stop in spans) for start, end in pairwise([0, *ends])]
        yield Marked(teacher.ask(prompt), ids, right)
