"""One drafter over a cell's prompts: seconds, tokens, and whether they are those of plain decoding."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from drafters.sampling.noise import noise
from service.engine.engine import Engine
from service.engine.request import DraftSources, SamplingParams

PLAIN = "none"


@dataclass(frozen=True)
class Timing:
    """One pass over a cell's prompts.

    Attributes:
        ids: the tokens of each prompt.
        decode_s: seconds from the first token to the last, without `start_s`.
        tokens: tokens after each prompt's first.
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
    engine: Engine,
    asked: Sequence[list[int]],
    params: SamplingParams,
    drafter: str,
    batch: int,
    sources: DraftSources | None = None,
) -> Timing:
    """Decode the prompts, `batch` of them at a time, each under a seed of its own; `sources` are for drafters that want
    more than the prompt."""
    ids: list[list[int]] = []
    decode_s = start_s = 0.0
    tokens = 0
    drafting: dict[str, Any] = {}
    for first in range(0, len(asked), batch):
        group = asked[first : first + batch]
        names = [
            engine.add_request(
                prompt, replace(params, drafter=drafter, seed=params.seed + first + i), draft_sources=sources
            )
            for i, prompt in enumerate(group)
        ]
        parts: dict[str, list[int]] = {name: [] for name in names}
        began: float | None = None
        before = 0
        while engine.has_work:
            for output in engine.step():
                parts[output.request_id] += output.token_ids
                if output.finished:
                    figures = output.stats.get("drafting", {})
                    start_s += figures.get("starting_seconds", 0.0)
                    _sum(drafting, figures)
            if began is None and all(parts.values()):
                began, before = time.perf_counter(), sum(map(len, parts.values()))
        decode_s += time.perf_counter() - (began or 0.0)
        tokens += sum(map(len, parts.values())) - before
        ids += [parts[name] for name in names]
    return Timing(ids, max(decode_s - start_s, 1e-9), tokens, start_s, _figures(drafting))


def divergences(
    engine: Engine,
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
    engine: Engine, prompt: list[int], one: int, other: int, params: SamplingParams, seed: int
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
