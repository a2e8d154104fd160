"""Memory of KV behind a long context: dense, LServe with its streaming heads' pages freed, and both in int8.

One request at a time runs through an engine; after every step the bytes it holds are read from the pool's own account
(pages it owns × bytes of a page, with scales and, where a policy ranks pages, their bounds).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from typer import Option

from eval.bench.base import Figures, Model, NewTokens, Row, ThreadedOptions, Threads, bench
from eval.bench.runner import ask, build, plain, random_ids
from service.engine.engine import Engine
from service.engine.loading.checkpoint import EMBEDDED, load_model
from service.engine.runner.model_runner import Forward
from service.engine.step import Slice, Step
from sparse_attn.kv.pool import head_bytes

TARGET_LSERVE = 0.55
TARGET_INT8 = 0.5
ROOM = 1.25  # pool ÷ what dense KV of the context takes: page bounds come on top of it


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """Memory of KV behind a long context: dense, LServe, and both in int8."""

    threads: Threads = 2
    model: Model = EMBEDDED
    length: Annotated[int, Option(min=256, help="Tokens of prompt and answer.")] = 65536
    new_tokens: NewTokens = 16
    lserve: Annotated[str, Option(help="The policy with streaming heads, as for --attention.")] = "lserve"
    step_tokens: Annotated[int, Option(min=64, help="Tokens of a prefill chunk.")] = 2048
    pages_only: Annotated[bool, Option("--pages-only", help="Skip the forwards: bytes, but no ids.")] = False


def run(options: Options) -> Figures:
    """Bytes of KV of one request of `length` tokens, answer included, in float32 and int8, dense and under `lserve`.

    With `pages_only` no forward runs and tokens are zeros: which pages a request holds depends on lengths alone.

    Returns, a row: most bytes between two steps of prefill, bytes when the last token is there, both ÷ those of dense
    float32; what the same pages would take in 16 bits (computed); and how many greedy ids agree with float32's.
    """
    loaded = load_model(options.model)
    prompt = random_ids(options.length - options.new_tokens, 0, loaded.vocab_size)
    rows: list[Row] = []
    for attention, kv_dtype in itertools.product(("dense", options.lserve), ("auto", "int8")):
        engine = build(
            loaded,
            ROOM * (options.length + options.step_tokens),
            kv_dtype=kv_dtype,
            attention=attention,
            max_model_len=options.length,
            step_tokens=options.step_tokens,
        )
        if options.pages_only:
            _skip_forwards(engine.engine)
        watch = Watch(engine.engine)
        with engine:
            found = ask(engine, prompt, plain(options.new_tokens))
        row: Row = {"attention": attention, "kv_dtype": kv_dtype, **watch.figures(engine.engine)}
        row |= {"seconds": found.times[-1], "token_ids": found.token_ids}
        rows.append(row)
        wide = row if kv_dtype == "auto" else rows[-2]
        row["share_of_dense"] = row["decode_bytes"] / rows[0]["decode_bytes"]
        row["prefill_share_of_dense"] = row["prefill_bytes"] / max(1, rows[0]["prefill_bytes"])
        row["share_of_float32"] = row["decode_bytes"] / wide["decode_bytes"]
        row["share_of_16_bits"] = row["decode_bytes"] / row["decode_bytes_in_16_bits"]
        row["agreeing_ids"] = sum(a == b for a, b in zip(row["token_ids"], wide["token_ids"], strict=True))
    hidden = {"token_ids", *(("agreeing_ids", "seconds") if options.pages_only else ())}
    shape = loaded.kv_shape
    return {
        "model": options.model,
        "kv": f"{shape.num_layers} layers of {shape.num_kv_heads} KV heads of {shape.head_dim}, float32",
        **options.told("length", "new_tokens", "step_tokens", "pages_only"),
        "target_lserve": TARGET_LSERVE,
        "target_int8_of_16_bits": TARGET_INT8,
        "rows": [{key: value for key, value in row.items() if key not in hidden} for row in rows],
    }


def _skip_forwards(engine: Engine) -> None:
    """Let the engine schedule and commit as ever over logits of zero."""

    def run(slices: Sequence[Slice], pending: torch.Tensor | None = None) -> Forward:
        first = itertools.accumulate((int(part.samples) for part in slices), initial=0)
        rows = [n if part.samples else -1 for n, part in zip(first, slices, strict=False)]
        return Forward(torch.zeros(max(1, len(slices)), engine.loaded.vocab_size), rows, set())

    engine.runner.run = run  # type: ignore[method-assign]


class Watch:
    """Reads the pool's account before each step is scheduled, that is between two steps.

    Attributes:
        prefill: most bytes before the first token.
        decode: bytes before the last step.
        pages: pages owned then.
    """

    def __init__(self, engine: Engine) -> None:
        self.prefill = self.decode = self.pages = 0
        self._engine, self._schedule = engine, engine.scheduler.schedule
        engine.scheduler.schedule = self._watched  # type: ignore[method-assign]

    def figures(self, engine: Engine) -> Row:
        """What was seen, and the sizes of the pool's pages."""
        pool = engine.runner.pool
        narrow = head_bytes(pool.shape.head_dim, torch.bfloat16) / head_bytes(pool.shape.head_dim, pool.dtype)
        return {
            "head_groups": pool.layout.num_groups,
            "page_bytes": pool.page_bytes,
            "bounds_bytes_per_page": pool.stats_bytes,
            "pages": self.pages,
            "prefill_bytes": self.prefill,
            "decode_bytes": self.decode,
            "decode_bytes_in_16_bits": int(self.pages * (pool.page_bytes * narrow + pool.stats_bytes)),
        }

    def _watched(self, most_rows: int | None = None) -> Step:
        if self._engine.scheduler.running:
            self.decode, self.pages = self._engine.stats()["kv_bytes_used"], self._engine.blocks.num_owned
            if self._engine.scheduler.running[0].num_output == 0:
                self.prefill = max(self.prefill, self.decode)
        return self._schedule(most_rows)


command = bench(Options, run, "kv_memory")
