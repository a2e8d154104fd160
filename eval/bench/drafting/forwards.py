"""Forwards over trees against the machine's two limits, both measured in the same run.

A forward must read the sequence's KV and the weights once, and multiply every row by all weights and attend all keys:
its limit is the longer of the two. A machine's rates change while it works (clocks, neighbours), so the rates and the
forwards are measured in turns, and `over_limit` is the median of the ratios of the same turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

from drafters.tree import DraftTree
from eval.bench.runner import plain, random_ids
from eval.bench.timer import Marks, in_turn, seconds
from retrieval.types import DEFAULT_OWNER
from service.engine.async_engine import AsyncEngine
from service.engine.block_manager import PageDigests, salt_of
from service.engine.engine import Engine
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.step import Slice

NODES = (0, 8, 32)
TURNS = 25


def tree_forwards(engine: AsyncEngine, context: int, turns: int = TURNS) -> dict[str, Any]:
    """Forwards over trees of 0, 8 and 32 nodes behind `context` tokens, against the machine's two limits.

    Of each number of nodes: the median and the least seconds of all turns; `limit_s` by the median rates; `over_limit`
    the median ratio of the same turn; `best_over_limit` the least seconds over the limit by the highest rates; and
    `over_kv_limit` as `over_limit`, of a limit that takes the weights for cached and counts only KV as read.
    """
    prompt = random_ids(context, context, engine.engine.loaded.vocab_size)
    engine.generate([prompt], plain(1))
    return engine.run(partial(_measure, prompt=prompt, turns=turns)).result()


def _measure(engine: Engine, prompt: list[int], turns: int) -> dict[str, Any]:
    request = Request("bench", prompt, SamplingParams())
    hit = engine.blocks.match([*prompt, 0], PageDigests(salt_of(engine.salt, DEFAULT_OWNER), engine.config.page_size))
    length = len(hit.pages) * engine.config.page_size
    request.pages = [*hit.pages, *engine.blocks.allocate(engine.blocks.pages_for(max(NODES) + 1))]
    marks = Marks(parts=1, floats=1 << 26, side=1536, device=engine.config.device)  # more than caches hold
    for work in marks.ways().values():
        work()

    def forward(part: Slice) -> float:
        run = partial(engine.runner.run, [part])
        run()  # as in decoding, where a step follows another
        return seconds(run)

    parts = {n: Slice(request, length, [prompt[-1]], True, tree=_binary_tree(prompt, n)) for n in NODES}
    ways = {name: partial(seconds, work) for name, work in marks.ways().items()}
    try:
        taken = in_turn(ways | {str(n): partial(forward, part) for n, part in parts.items()}, turns)
    finally:
        engine.blocks.release(request.pages)
    reads = [marks.bytes_per_s(one) for one in taken["read"]]
    products = [marks.flops_per_s(one) for one in taken["matmul"]]
    figures: dict[str, Any] = {"read_bytes_per_s": median(reads), "flops_per_s": median(products), "turns": turns}
    return figures | {"rows": [_row(n, taken[str(n)], reads, products, *_work(engine, length, n + 1)) for n in NODES]}


def _row(
    nodes: int,
    taken: Sequence[float],
    reads: Sequence[float],
    products: Sequence[float],
    kv: float,
    weights: float,
    flops: float,
) -> dict[str, Any]:
    def limit(read: float, product: float, size: float = kv + weights) -> float:
        return max(size / read, flops / product)

    turns = list(zip(taken, reads, products, strict=True))
    return {
        "nodes": nodes,
        "seconds": median(taken),
        "least_seconds": min(taken),
        "limit_s": limit(median(reads), median(products)),
        "over_limit": median(one / limit(read, product) for one, read, product in turns),
        "best_over_limit": min(taken) / limit(max(reads), max(products)),
        "over_kv_limit": median(one / limit(read, product, kv) for one, read, product in turns),
    }


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
