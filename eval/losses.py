"""What a text costs a model under an attention policy: the mean negative log-probability of its last tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from eval.errors import EvalError
from service.engine.async_engine import AsyncEngine
from service.engine.outputs import TokenLogprobs
from service.engine.params import SamplingParams


@dataclass(frozen=True)
class Losses:
    """Of each window the mean negative log-probability of its scored tokens, and the mean density of attention."""

    each: list[float]
    density: float


def cut(ids: Sequence[int], length: int, count: int, scored: int) -> list[list[int]]:
    """Windows of the text, none of which share a token."""
    if length <= scored:
        raise EvalError(f"windows of {length} tokens have no context before the {scored} that are scored")
    found = [list(ids[at : at + length]) for at in range(0, len(ids) - length + 1, length)][:count]
    if len(found) < 2:
        raise EvalError(
            f"the text has {len(ids)} tokens, two windows of {length} are needed", hint="Give a longer --text."
        )
    return found


def read(engine: AsyncEngine, windows: Sequence[Sequence[int]], scored: int, policy: str) -> Losses:
    """The windows, one after the other, under a policy."""
    each, densities = [], []
    for window in windows:
        tokens, density = logprobs(engine, window, policy)
        each.append(-fmean(one.logprob for one in tokens[-scored:]))
        densities.append(density)
    return Losses(each, fmean(densities))


def logprobs(engine: AsyncEngine, ids: Sequence[int], policy: str) -> tuple[list[TokenLogprobs], float]:
    """Of all tokens but the first, read under a policy, and the density of attention.

    Raises:
        EvalError: the engine failed.
    """
    params = SamplingParams(max_tokens=0, prompt_logprobs=0, drafter="none", attention=policy)
    [found] = engine.generate([ids], params)
    if found.error is not None:
        raise EvalError(f"the engine failed under {policy}: {found.error}")
    return found.prompt_logprobs or [], found.stats.get("prefill_density", 1.0)


def rise(losses: Losses, dense: Losses) -> float:
    """The share by which perplexity rises over dense attention."""
    return math.expm1(fmean(losses.each) - fmean(dense.each))
