"""Forwards over trees against the machine's two limits, both measured in the same run."""

from __future__ import annotations

import time
from typing import Any

import torch

from drafters.tree import DraftTree
from service.engine.engine import Engine
from service.engine.request import Request, SamplingParams
from service.engine.step import Slice


def tree_forwards(engine: Engine, prompt: list[int]) -> dict[str, Any]:
    """Forwards over trees of 0, 8 and 32 nodes behind a prompt, against the machine's two limits."""
    read, multiply = machine_limits(engine.config.device)
    request = Request("bench", prompt, SamplingParams())
    hit = engine.blocks.match([*prompt, 0], engine.salt)
    length = len(hit.pages) * engine.config.page_size
    request.pages = [*hit.pages, *engine.blocks.allocate(1)]
    config = engine.loaded.model.config.get_text_config()
    weights = sum(p.numel() for p in engine.loaded.model.parameters())
    kv_bytes = engine.loaded.kv_shape.bytes_per_token(torch.float32) * length
    figures: dict[str, Any] = {"read_bytes_per_s": read, "flops_per_s": multiply, "rows": []}
    try:
        for nodes in (0, 8, 32):
            parents = [-1 if i == 0 else (i - 1) // 2 for i in range(nodes)]
            tree = DraftTree.of(prompt[:nodes], parents) if nodes else None
            part = Slice(request, length, [prompt[-1]], True, tree=tree)
            seconds = min(_seconds(lambda part=part: engine.runner.run([part])) for _ in range(7))
            rows = nodes + 1
            heads = config.num_attention_heads * config.head_dim
            flops = 2 * rows * weights + 4 * rows * length * heads * config.num_hidden_layers
            limit = max((kv_bytes + 4 * weights) / read, flops / multiply)
            figures["rows"].append(
                {"nodes": nodes, "seconds": seconds, "limit_s": limit, "over_limit": seconds / limit}
            )
    finally:
        engine.blocks.release(request.pages)
    return figures


def machine_limits(device: str) -> tuple[float, float]:
    """Bytes per second read and float32 FLOPs per second multiplied, both measured now."""
    big = torch.ones(1 << 26, device=device)
    read = big.numel() * 4 / min(_seconds(lambda: big.sum()) for _ in range(5))
    a = torch.randn(1536, 1536, device=device)
    multiply = 2 * 1536**3 / min(_seconds(lambda: a @ a) for _ in range(5))
    return read, multiply


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
