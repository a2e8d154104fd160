"""One drafter over a cell's prompts: seconds, tokens, and whether they are those of plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from drafters.sampling.noise import noise
from eval.errors import EvalError
from service.engine.async_engine import AsyncEngine
from service.engine.params import DraftSources, SamplingParams

PLAIN = "none"
_SAME_STEP_S = 1e-4  # tokens of one step are told within less


@dataclass(frozen=True)
class Timing:
    """One pass over a cell's prompts.

    Attributes:
        ids: the tokens of each prompt.
        decode_s: seconds from the first token to the last, without `start_s`.
        tokens: tokens after the step in which all prompts had their first.
        start_s: seconds that the drafter took before its first guess.
        drafting: DraftingStats as a dictionary, summed.
    """

    ids: list[list[int]]
    decode_s: float
    tokens: int
    start_s: float
    drafting: dict[str, Any]

    @property
    def rate(self) -> float:
        return self.tokens / self.decode_s

    @classmethod
    def joined(cls, parts: Sequence[Timing]) -> Timing:
        """One after the other."""
        drafting: dict[str, Any] = {}
        for part in parts:
            _sum(drafting, part.drafting)
        return cls(
            [ids for part in parts for ids in part.ids],
            sum(part.decode_s for part in parts),
            sum(part.tokens for part in parts),
            sum(part.start_s for part in parts),
            _figures(drafting),
        )


def timed(
    engine: AsyncEngine,
    asked: Sequence[list[int]],
    params: SamplingParams,
    drafter: str,
    sources: DraftSources | None = None,
) -> Timing:
    """Decode the prompts at once, each under a seed of its own; `sources` are for drafters that want more than the
    prompt."""
    each = [replace(params, drafter=drafter, seed=params.seed + i) for i in range(len(asked))]
    found = engine.generate(asked, each, [sources] * len(asked))
    if failed := next((one.error for one in found if one.error), None):
        raise EvalError(f"the engine failed with the drafter {drafter}: {failed}")
    times = [moment for one in found for moment in one.times]
    began = max(one.times[0] for one in found)
    start_s = sum(one.stats.get("drafting", {}).get("starting_seconds", 0.0) for one in found)
    drafting: dict[str, Any] = {}
    for one in found:
        _sum(drafting, one.stats.get("drafting", {}))
    return Timing(
        [one.token_ids for one in found],
        max(max(times) - began - start_s, 1e-9),
        sum(moment > began + _SAME_STEP_S for moment in times),
        start_s,
        _figures(drafting),
    )


def divergences(
    engine: AsyncEngine,
    asked: Sequence[list[int]],
    plain: Sequence[list[int]],
    guessed: Sequence[list[int]],
    params: SamplingParams,
) -> list[dict[str, Any]]:
    """Where a drafter's tokens first differ from plain decoding's, and how close the two candidates were."""
    found: list[dict[str, Any]] = []
    for i, (expected, got) in enumerate(zip(plain, guessed, strict=True)):
        if expected == got:
            continue
        at = next((j for j, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
        if at is None:
            found.append({"prompt": i, "at": min(len(expected), len(got)), "gap": None})
            continue
        prompt = asked[i] + expected[:at]
        gap = perturbed_gap(engine, prompt, expected[at], got[at], params, params.seed + i)
        found.append({"prompt": i, "at": at, "gap": gap})
    return found


def perturbed_gap(
    engine: AsyncEngine, prompt: list[int], one: int, other: int, params: SamplingParams, seed: int
) -> float | None:
    """The difference of two candidates' perturbed scores after a prompt; None where one is not among the best
    20."""
    asked = SamplingParams(max_tokens=1, logprobs=20, ignore_eos=True, drafter=PLAIN)
    result = engine.generate([prompt], asked)[0]
    best = dict(result.logprobs[0].top) if result.logprobs else {}
    if one not in best or other not in best:
        return None
    if params.temperature == 0:
        return best[one] - best[other]
    keys = torch.tensor([seed]), torch.tensor([len(prompt)])
    g = noise(keys[0], keys[1], torch.tensor([one, other]))
    return (best[one] - best[other]) / params.temperature + float(g[0] - g[1])


def _sum(total: dict[str, Any], figures: dict[str, Any]) -> None:
    for key, value in figures.items():
        if isinstance(value, dict):
            _sum(total.setdefault(key, {}), value)
        elif isinstance(value, (int, float)):
            total[key] = total.get(key, 0) + value


def _figures(drafting: dict[str, Any]) -> dict[str, Any]:
    if not drafting.get("steps"):
        return {}
    return drafting | {
        "accepted_length": drafting["emitted"] / drafting["steps"],
        "acceptance_rate": drafting["accepted"] / max(drafting["drafted"], 1),
    }
