"""Folio's own engine without a prefix cache; the option is a point such as "auto" or "dense+suffix"."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from protocol import serve


def load(request: dict[str, Any]) -> Any:
    import torch

    from eval.harness.engines import Point
    from service.engine.async_engine import AsyncEngine

    torch.set_num_threads(request["threads"])
    engine = AsyncEngine.from_pretrained(
        request["model"], dtype=request["precision"], prefix_cache=False, max_running=request["sequences"]
    )
    engine.start()
    return engine, Point.parse(request["option"])


def stream(running: Any, ids: list[int], new_tokens: int) -> Iterator[int]:
    from service.engine.params import SamplingParams

    engine, point = running
    params = SamplingParams(max_tokens=new_tokens, ignore_eos=True, attention=point.attention, drafter=point.drafter)
    outputs = engine.stream(ids, params)
    with closing(asyncio.new_event_loop()) as loop:
        while (output := loop.run_until_complete(anext(outputs, None))) is not None:
            yield from output.token_ids


def batch(running: Any, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    from service.engine.params import SamplingParams

    engine, point = running
    params = SamplingParams(max_tokens=new_tokens, ignore_eos=True, attention=point.attention, drafter=point.drafter)
    return [found.token_ids for found in engine.generate(prompts, params)]


def score(running: Any, ids: list[int]) -> float:
    from service.engine.params import SamplingParams

    engine, point = running
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, attention=point.attention, drafter="none")
    [found] = engine.generate([ids], params)
    return -sum(token.logprob for token in found.prompt_logprobs) / len(found.prompt_logprobs)


def about(running: Any) -> str:
    engine, _ = running
    return str(engine.engine.loaded.arithmetic)


if __name__ == "__main__":
    imports = ("torch", "eval.harness.engines", "service.engine.async_engine")
    serve(load, stream, batch, score, about, imports)
