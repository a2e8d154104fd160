"""Time to the first token of the embedded reader on real text: dense, under sparse policies, and in other engines."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from eval.errors import EvalError
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import EMBEDDED, LoadedModel, load_model
from service.engine.request import SamplingParams

DENSE = "dense"
HEADROOM = 64  # tokens of the window that are no prompt


def run(
    text: str, contexts: list[int], policies: list[str], peers: list[str], peers_up_to: int, repeats: int, threads: int
) -> list[dict[str, Any]]:
    """A row a length and system; policies in this process in turn, peers each in one of its own.

    ``speedup`` is the dense policy's time ÷ the system's. ``index_s`` and ``kernel_s`` are the parts of a policy's time
    that went into choosing blocks and into attention; a peer that fails has its error in its row. Beyond 32,768 tokens
    each system runs once.
    """
    torch.set_num_threads(threads)
    loaded = load_model(EMBEDDED)
    rows: list[dict[str, Any]] = []
    for context in contexts:
        length = min(context, loaded.max_len - HEADROOM)
        ids = token_ids(loaded, text, length)
        times = repeats if context <= 32768 else 1
        own = _policy_rows(loaded, ids, [DENSE, *policies], times)
        if context <= peers_up_to:
            own += [_peer_row(name, ids, times, threads) for name in peers]
        dense = own[0]["ttft_s"]
        for row in own:
            if "ttft_s" in row:
                row["speedup"] = dense / row["ttft_s"]
            rows.append({"context": length, **row})
    return rows


def _policy_rows(loaded: LoadedModel, ids: list[int], policies: list[str], repeats: int) -> list[dict[str, Any]]:
    """A row a policy, all of them in turn on one engine, ``repeats`` times."""
    memory = int(1.2 * len(ids) * loaded.kv_shape.bytes_per_token(torch.float32)) + (64 << 20)
    engine = Engine(loaded, EngineConfig(kv_memory=memory, prefix_cache=False, drafter="none"))
    engine.generate([ids[:512]], SamplingParams(max_tokens=2, ignore_eos=True, attention=DENSE))  # warm
    runs: dict[str, list[dict[str, Any]]] = {policy: [] for policy in policies}
    for _ in range(repeats):
        for policy in policies:
            runs[policy].append(_run_policy(engine, ids, policy))
    rows = []
    for policy, own in runs.items():
        median = sorted(own, key=lambda run: run["ttft_s"])[len(own) // 2]
        seconds = [run["ttft_s"] for run in own]
        rows.append({**median, "system": f"folio {policy}", "first_token_s": seconds})
        rows[-1]["ttft_s"] = statistics.median(seconds)
    return rows


def _run_policy(engine: Engine, ids: list[int], policy: str) -> dict[str, Any]:
    with kernel_time() as spent:
        began = time.perf_counter()
        request = engine.add_request(ids, SamplingParams(max_tokens=1, ignore_eos=True, attention=policy))
        state = engine._requests[request].policy
        for output in _outputs(engine):
            if output.error:
                raise EvalError(f"{policy}: {output.error}")
            first_id = output.token_ids[0]
        seconds = time.perf_counter() - began
    return {
        "in_force": state.policy.cache_key() if state is not None else DENSE,
        "ttft_s": seconds,
        "kernel_s": spent[0],
        "index_s": state.prefill_stats.index_seconds if state is not None else 0.0,
        "density": state.prefill_stats.density if state is not None else 1.0,
        "first_id": first_id,
    }


def _outputs(engine: Engine) -> Iterator[Any]:
    while engine.has_work:
        yield from engine.step()


@contextmanager
def kernel_time() -> Iterator[list[float]]:
    """Seconds that the attention kernels of a block of code take, in a list of one."""
    from sparse_attn import backend

    attend, spent = backend._attend, [0.0]

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return attend(*arguments)
        finally:
            spent[0] += time.perf_counter() - began

    backend._attend = timed  # type: ignore[assignment]
    try:
        yield spent
    finally:
        backend._attend = attend


def _peer_row(name: str, ids: list[int], repeats: int, threads: int) -> dict[str, Any]:
    from eval.peers.client import PEERS, Worker
    from eval.peers.convert import converted
    from service.reader import MODEL_DIR

    try:
        with Worker(PEERS[name]) as worker:
            model = converted(MODEL_DIR, PEERS[name].worker)
            worker.load(model, threads=threads, context=len(ids) + HEADROOM)
            worker.generate(ids[:512], 2)  # warm
            timings = [worker.generate(ids, 2) for _ in range(repeats)]
    except EvalError as error:
        return {"system": name, "error": error.detail}
    seconds = [timing.ttft_s for timing in timings]
    return {
        "system": name,
        "first_token_s": seconds,
        "ttft_s": statistics.median(seconds),
        "first_id": timings[0].ids[0],
    }


def token_ids(loaded: LoadedModel, text: str, length: int) -> list[int]:
    assert loaded.tokenizer is not None
    ids = list(loaded.tokenizer.encode(text, add_special_tokens=False))
    if not ids:
        raise EvalError("The text is empty.", param="text")
    return (ids * (length // len(ids) + 1))[:length]
