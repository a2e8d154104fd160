"""Decoding speed of the embedded reader behind a long text: dense, and with pages selected."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import torch

from eval.bench._reader_prefill import HEADROOM, kernel_time, token_ids
from eval.errors import EvalError
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import EMBEDDED, LoadedModel, load_model
from service.engine.request import SamplingParams

PREFILL = "trianglemix:deep=1.0,last=256,gate=1024"  # the same for all: only decode is compared
DENSE = "dense"


def run(text: str, contexts: list[int], policies: list[str], new_tokens: int, threads: int) -> list[dict[str, Any]]:
    """A row a length and decode policy, dense first: milliseconds a token of a whole step, without a drafter.

    ``kernel_ms`` and ``index_ms`` are the parts of it that go into attention and into choosing pages; ``speedup`` is
    over dense. No drafter runs.
    """
    torch.set_num_threads(threads)
    loaded = load_model(EMBEDDED)
    rows: list[dict[str, Any]] = []
    for context in contexts:
        ids = token_ids(loaded, text, min(context, loaded.max_len - HEADROOM))
        own = [_row(loaded, ids, policy, new_tokens) for policy in [DENSE, *policies]]
        for row in own:
            row["speedup"] = own[0]["ms_per_token"] / row["ms_per_token"]
        rows += own
    return rows


def _row(loaded: LoadedModel, ids: list[int], policy: str, new_tokens: int) -> dict[str, Any]:
    memory = int(1.2 * len(ids) * loaded.kv_shape.bytes_per_token(torch.float32)) + (64 << 20)
    engine = Engine(loaded, EngineConfig(kv_memory=memory, prefix_cache=False, drafter="none"))
    attention = f"{PREFILL}+{policy}"
    request = engine.add_request(ids, SamplingParams(max_tokens=new_tokens, ignore_eos=True, attention=attention))
    state = engine._requests[request].policy
    assert state is not None
    stamps: list[float] = []
    with kernel_time() as spent:
        before = 0.0
        while engine.has_work:
            for output in engine.step():
                if output.error:
                    raise EvalError(f"{attention}: {output.error}")
                stamps.append(time.perf_counter())
                before = before or spent[0]
    between = [after - first for first, after in itertools.pairwise(stamps)]
    steps = len(between)
    return {
        "context": len(ids),
        "decode": policy,
        "new_tokens": len(stamps),
        "ms_per_token": 1e3 * statistics.median(between),
        "kernel_ms": 1e3 * (spent[0] - before) / steps,
        "index_ms": 1e3 * state.decode_stats.index_seconds / steps,
        "density": state.decode_stats.density,
    }
