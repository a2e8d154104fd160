"""Memory of KV behind a long context: dense, LServe with its streaming heads' pages freed, and both in int8.

One request at a time runs through an engine; after every step the bytes it holds are read from the pool's own account
(pages it owns × bytes of a page, with scales and, where a policy ranks pages, their bounds).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from eval.figures import report_result
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import DTYPES, EMBEDDED, LoadedModel, load_model
from service.engine.request import SamplingParams
from service.engine.runner.model_runner import Forward
from service.engine.step import Slice
from sparse_attn.kv.pool import head_bytes

TARGET_LSERVE = 0.55
TARGET_INT8 = 0.5
ROOM = 1.25  # pool ÷ what dense KV of the context takes: page bounds come on top of it


def run(
    model: str = EMBEDDED,
    length: int = 65536,
    new_tokens: int = 16,
    lserve: str = "lserve",
    step_tokens: int = 2048,
    threads: int = 2,
    pages_only: bool = False,
) -> dict[str, Any]:
    """Bytes of KV of one request of `length` tokens, answer included, in float32 and int8, dense and under `lserve`.

    With `pages_only` no forward runs and tokens are zeros: which pages a request holds depends on lengths alone.

    Returns, a row: most bytes between two steps of prefill, bytes when the last token is there, both ÷ those of dense
    float32; what the same pages would take in 16 bits (computed); and how many greedy ids agree with float32's.
    """
    torch.set_num_threads(threads)
    loaded = load_model(model)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, loaded.vocab_size, (length - new_tokens,), generator=generator).tolist()
    rows: list[dict[str, Any]] = []
    for attention in ("dense", lserve):
        for kv_dtype in ("auto", "int8"):
            engine = _engine(loaded, length, attention, kv_dtype, step_tokens)
            if pages_only:
                _skip_forwards(engine)
            rows.append({"attention": attention, "kv_dtype": kv_dtype, **_measure(engine, prompt, new_tokens)})
            del engine
    dense = rows[0]
    for row in rows:
        plain = next(r for r in rows if r["attention"] == row["attention"] and r["kv_dtype"] == "auto")
        row["share_of_dense"] = row["decode_bytes"] / dense["decode_bytes"]
        row["prefill_share_of_dense"] = row["prefill_bytes"] / dense["prefill_bytes"]
        row["share_of_float32"] = row["decode_bytes"] / plain["decode_bytes"]
        row["share_of_16_bits"] = row["decode_bytes"] / row["decode_bytes_in_16_bits"]
        ids, expected = row["token_ids"], plain["token_ids"]
        row["agreeing_ids"] = sum(a == b for a, b in zip(ids, expected, strict=True))
    for row in rows:
        del row["token_ids"]
        if pages_only:
            del row["agreeing_ids"], row["seconds"]
    shape = loaded.kv_shape
    return {
        "model": model,
        "kv": f"{shape.num_layers} layers of {shape.num_kv_heads} KV heads of {shape.head_dim}, float32",
        "length": length,
        "new_tokens": new_tokens,
        "step_tokens": step_tokens,
        "pages_only": pages_only,
        "target_lserve": TARGET_LSERVE,
        "target_int8_of_16_bits": TARGET_INT8,
        "rows": rows,
    }


def _engine(loaded: LoadedModel, length: int, attention: str, kv_dtype: str, step_tokens: int) -> Engine:
    memory = int(ROOM * (length + step_tokens) * loaded.kv_shape.bytes_per_token(DTYPES["float32"]))
    config = EngineConfig(
        kv_memory=memory,
        kv_dtype=kv_dtype,
        attention=attention,
        max_model_len=length,
        max_step_tokens=step_tokens,
        prefix_cache=False,
        drafter="none",
    )
    return Engine(loaded, config)


def _skip_forwards(engine: Engine) -> None:
    """Let the engine schedule and commit as ever over logits of zero."""

    def run(slices: Sequence[Slice]) -> Forward:
        first = itertools.accumulate((int(part.samples) for part in slices), initial=0)
        rows = [n if part.samples else -1 for n, part in zip(first, slices, strict=False)]
        return Forward(torch.zeros(max(1, len(slices)), engine.loaded.vocab_size), rows, set())

    engine.runner.run = run  # type: ignore[method-assign]


def _measure(engine: Engine, prompt: list[int], new_tokens: int) -> dict[str, Any]:
    """One request from its first step to its last."""
    request_id = engine.add_request(prompt, SamplingParams(max_tokens=new_tokens, ignore_eos=True))
    request = engine._requests[request_id]
    pool, began = engine.runner.pool, time.perf_counter()
    prefill = decode = pages = 0
    ids: list[int] = []
    while not request.finish_reason:
        decode, pages = engine.stats()["kv_bytes_used"], engine.blocks.num_owned
        if request.num_output == 0:
            prefill = max(prefill, decode)
        ids += [token for output in engine.step() for token in output.token_ids]
    shape = pool.shape
    narrow = head_bytes(shape.head_dim, torch.bfloat16) / head_bytes(shape.head_dim, pool.dtype)
    return {
        "head_groups": pool.layout.num_groups,
        "page_bytes": pool.page_bytes,
        "bounds_bytes_per_page": pool.stats_bytes,
        "pages": pages,
        "prefill_bytes": prefill,
        "decode_bytes": decode,
        "decode_bytes_in_16_bits": int(pages * (pool.page_bytes * narrow + pool.stats_bytes)),
        "seconds": time.perf_counter() - began,
        "token_ids": ids,
    }


def command(
    model: Annotated[
        str, typer.Option("--model", "-m", help="embedded, a checkpoint's folder, or a hub id")
    ] = EMBEDDED,
    length: Annotated[int, typer.Option(help="tokens of prompt and answer", min=256)] = 65536,
    new_tokens: Annotated[int, typer.Option(help="tokens to decode", min=2)] = 16,
    lserve: Annotated[str, typer.Option(help="the policy with streaming heads, as for --attention")] = "lserve",
    step_tokens: Annotated[int, typer.Option(help="tokens of a prefill chunk", min=64)] = 2048,
    threads: Annotated[int, typer.Option(help="CPU threads", min=1)] = 2,
    pages_only: Annotated[bool, typer.Option("--pages-only", help="skip the forwards: bytes, but no ids")] = False,
    output: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures")] = False,
) -> None:
    """Memory of KV behind a long context: dense, LServe, and both in int8."""
    figures = run(model, length, new_tokens, lserve, step_tokens, threads, pages_only)
    report_result("kv_memory", figures, as_json=as_json, output=output)
