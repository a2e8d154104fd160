"""Folio's own engine without a prefix cache; the option is a point such as "auto" or "dense+suffix"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from protocol import serve


def load(request: dict[str, Any]) -> Any:
    import torch

    from eval.harness.engines import Point
    from service.engine.engine import Engine

    torch.set_num_threads(request["threads"])
    return Engine.from_pretrained(request["model"], prefix_cache=False), Point.parse(request["option"])


def stream(engine: Any, ids: list[int], new_tokens: int) -> Iterator[int]:
    from service.engine.request import SamplingParams

    running, point = engine
    params = SamplingParams(max_tokens=new_tokens, ignore_eos=True, attention=point.attention, drafter=point.drafter)
    request = running.add_request(ids, params)
    done = False
    while not done:
        for output in running.step():
            if output.request_id == request:
                if output.error:
                    raise RuntimeError(output.error)
                done = output.finished
                yield from output.token_ids


if __name__ == "__main__":
    serve(load, stream)
