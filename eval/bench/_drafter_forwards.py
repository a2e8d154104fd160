"""Forwards over trees against the machine's two limits, both measured in the same run.

A forward must read the sequence's KV and the weights once, and multiply every row by all weights and attend all keys:
its limit is the longer of the two. A machine's rates change while it works (clocks, neighbours), so the rates and the
forwards are measured in turns, and `over_limit` is the median of the ratios of the same turn.
"""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from drafters.tree import DraftTree
from service.engine.block_manager import PageDigests
from service.engine.engine import Engine
from service.engine.request import Request, SamplingParams
from service.engine.step import Slice

NODES = (0, 8, 32)
TURNS = 25
_SIZE = 1536  # of the square matrices that are multiplied
_READ = 1 << 26  # floats that are read: more than caches hold


def tree_forwards(engine: Engine, context: int, turns: int = TURNS) -> dict[str, Any]:
    """Forwards over trees of 0, 8 and 32 nodes behind `context` tokens, against the machine's two limits.

    Of each number of nodes: the median and the least seconds of all turns; `limit_s` by the median rates; `over_limit`
    the median ratio of the same turn; `best_over_limit` the least seconds over the limit by the highest rates; and
    `over_kv_limit` as `over_limit`, of a limit that takes the weights for cached and counts only KV as read.
    """
    prompt = random.Random(context).choices(range(3, engine.loaded.vocab_size), k=context)
    engine.generate([prompt], SamplingParams(max_tokens=1, ignore_eos=True, drafter="none"))
    request = Request("bench", prompt, SamplingParams())
    hit = engine.blocks.match([*prompt, 0], PageDigests(engine.salt, engine.config.page_size))
    length = len(hit.pages) * engine.config.page_size
    request.pages = [*hit.pages, *engine.blocks.allocate(engine.blocks.pages_for(max(NODES) + 1))]
    parts = {nodes: Slice(request, length, [prompt[-1]], True, tree=_binary_tree(prompt, nodes)) for nodes in NODES}
    read, multiply = _measurements(engine.config.device)
    reads: list[float] = []
    products: list[float] = []
    seconds: dict[int, list[float]] = {nodes: [] for nodes in NODES}
    try:
        for _ in range(turns):
            reads.append(4 * _READ / _seconds(read))
            products.append(2 * _SIZE**3 / _seconds(multiply))
            for nodes, part in parts.items():
                run = functools.partial(engine.runner.run, [part])
                run()  # as in decoding, where a step follows another
                seconds[nodes].append(_seconds(run))
    finally:
        engine.blocks.release(request.pages)
    rates = list(zip(reads, products, strict=True))
    middle = (statistics.median(reads), statistics.median(products))
    figures: dict[str, Any] = {"read_bytes_per_s": middle[0], "flops_per_s": middle[1], "turns": turns, "rows": []}
    for nodes, taken in seconds.items():
        kv, weights, flops = _work(engine, length, nodes + 1)

        def limit(rate: tuple[float, float], read: float = kv + weights, flops: float = flops) -> float:
            return max(read / rate[0], flops / rate[1])

        figures["rows"].append(
            {
                "nodes": nodes,
                "seconds": statistics.median(taken),
                "least_seconds": min(taken),
                "limit_s": limit(middle),
                "over_limit": statistics.median(s / limit(rate) for s, rate in zip(taken, rates, strict=True)),
                "best_over_limit": min(taken) / limit((max(reads), max(products))),
                "over_kv_limit": statistics.median(s / limit(rate, kv) for s, rate in zip(taken, rates, strict=True)),
            }
        )
    return figures


def _binary_tree(prompt: list[int], nodes: int) -> DraftTree | None:
    return DraftTree.of(prompt[:nodes], [-1 if i == 0 else (i - 1) // 2 for i in range(nodes)]) if nodes else None


def _work(engine: Engine, length: int, rows: int) -> tuple[float, float, float]:
    """Bytes of KV, bytes of weights and FLOPs of one forward over `rows` rows behind `length` tokens."""
    model = engine.loaded.model
    config = model.config.get_text_config()
    used = sum(p.numel() for p in model.parameters())
    if model.get_input_embeddings().weight is not model.get_output_embeddings().weight:
        used -= model.get_input_embeddings().weight.numel()  # of which a row a token is read
    heads = config.num_attention_heads * config.head_dim
    flops = 2 * rows * used + 4 * rows * length * heads * config.num_hidden_layers
    kv = engine.loaded.kv_shape.bytes_per_token(engine.runner.pool.dtype) * length
    return kv, used * next(model.parameters()).element_size(), flops


def _measurements(device: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What reads `_READ` floats, and what multiplies two matrices of `_SIZE`; both have run once."""
    big, square = torch.ones(_READ, device=device), torch.randn(_SIZE, _SIZE, device=device)
    works = (big.sum, lambda: square @ square)
    for work in works:
        work()
    return works


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
