"""Engines for benchmarks: how they are built, what they are asked, and how their tokens are held to a reference."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from eval.errors import EvalError
from service.engine.async_engine import AsyncEngine
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import LoadedModel
from service.engine.outputs import Generation
from service.engine.params import SamplingParams

HEADROOM = 64  # tokens of a window that are no prompt


def build(loaded: LoadedModel, tokens: float, **config: Any) -> AsyncEngine:
    """An engine, to be entered, with KV for so many tokens of float32.

    Unless ``config`` says otherwise it has no prefix cache, no drafter, and attends densely.
    """
    kv_memory = int(tokens * loaded.kv_shape.bytes_per_token(torch.float32))
    plain = {"kv_memory": kv_memory, "prefix_cache": False, "drafter": "none", "attention": "dense"}
    return AsyncEngine(Engine(loaded, EngineConfig.of(**plain | config)))


@dataclass
class Timing:
    """What one system took for a prompt, over all repeats.

    Attributes:
        first_s: seconds to the first token, of each repeat.
        between_s: seconds between tokens, of all repeats.
        ids: the tokens of the last repeat.
        stats: the engine's figures of the last repeat.
    """

    first_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)

    def add(self, times: Sequence[float], ids: Sequence[int], stats: dict[str, Any]) -> None:
        """One more repeat, whose tokens came so many seconds after it began."""
        self.first_s.append(times[0])
        self.between_s += [after - before for before, after in pairwise(times)]
        self.ids, self.stats = list(ids), stats

    @property
    def median_first_s(self) -> float:
        return median(self.first_s)

    @property
    def tokens_per_s(self) -> float:
        return 1 / median(self.between_s)

    def figures(self) -> dict[str, Any]:
        return {
            "first_token_s": self.first_s,
            "median_first_token_s": self.median_first_s,
            "decode_ms_per_token_median": 1e3 / self.tokens_per_s,
            "decode_tokens_per_s": self.tokens_per_s,
            "kernels": self.stats.get("kernels", []),
        }


def ask(engine: AsyncEngine, prompt: Sequence[int], params: SamplingParams, timing: Timing | None = None) -> Generation:
    """One prompt; its times are added to ``timing``.

    Raises:
        EvalError: the engine failed.
    """
    [found] = engine.generate([prompt], params)
    if found.error is not None:
        raise EvalError(f"the engine failed: {found.error}")
    if timing is not None:
        timing.add(found.times, found.token_ids, found.stats)
    return found


def plain(new_tokens: int, attention: str | None = None) -> SamplingParams:
    """Greedy, exactly so many tokens, without a drafter."""
    return SamplingParams(max_tokens=new_tokens, ignore_eos=True, drafter="none", attention=attention)


def agreeing(a: Sequence[int], b: Sequence[int]) -> int:
    """Ids before the first that differ."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def random_ids(length: int, seed: int = 0, vocabulary: int = 4000) -> list[int]:
    """Token ids that every vocabulary of at least this size has; the first ones are often special and left out."""
    rng = random.Random(seed)
    return [rng.randrange(min(300, vocabulary // 2), vocabulary) for _ in range(length)]


def text_ids(loaded: LoadedModel, text: str | None, length: int) -> list[int]:
    """So many tokens of a text, from its beginning again where it is shorter; of a made one where none is given.

    Raises:
        EvalError: the model has no tokenizer, or the text is empty.
    """
    from sparse_attn.plan.calibrate import retrieval_text

    if loaded.tokenizer is None:
        raise EvalError(f"The model {loaded.name!r} has no tokenizer, so there is no text to measure on.")

    def encode(words: str) -> list[int]:
        return list(loaded.tokenizer.encode(words, add_special_tokens=False))

    ids = encode(text) if text is not None else retrieval_text(encode, length + 64)
    if not ids:
        raise EvalError("The text is empty.", param="text")
    return (ids * (length // len(ids) + 1))[:length]
