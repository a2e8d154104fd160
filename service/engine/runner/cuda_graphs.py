"""Decode steps replayed as CUDA graphs, with the unmodified transformers model.

A forward of a few rows is a thousand small kernels, and launching them takes longer than running them. A graph
launches them all at once, but with the same addresses and shapes each time. So a decode step runs in a *bucket*: so
many sequences of so many rows each, in buffers that stay where they are. The step's numbers are copied in, what is
left over is padding:

* a row behind a sequence's own sees its context and itself, and is written to slot -1, the pool's scratch page;
* a sequence behind the batch's own has no context, and rows like these.

Padded rows are finite, read nothing that is not there and are dropped from the logits. Buckets are captured when the
engine starts, the largest first, so that the smaller ones find room in its memory. What no bucket holds (prefill,
sparse decode, head groups) runs as before; `GraphStats` counts both and says why.

The choice of the bucket and the padding need no GPU: with `run_eagerly` for `GraphCapture` a step runs from the same
buffers on any device, which is how the tests hold it to the ordinary runner.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor

from service.engine.block_manager import Place
from service.engine.runner.model_runner import Forward, ModelRunner, tree_mask
from service.engine.step import Slice
from sparse_attn.batch import AttnBatch, GroupTables
from sparse_attn.host_values import remember
from sparse_attn.kv.pool import KVPool
from sparse_attn.tree_masks import TreeMasks

log = structlog.get_logger(__name__)

SEQUENCES = (1, 2, 4, 8, 16, 32, 64)
ROWS = (1, 8, 16, 32, 64)
MOST_ROWS = 512  # rows of a bucket: more are bound by computing, not by launching
TUNING_TOKENS = 4096  # context while kernels are tuned: an empty one would choose for nothing

Replay = Callable[[], Tensor]
Capture = Callable[[Callable[[], Tensor]], Replay]


@dataclass(frozen=True)
class Bucket:
    """A fixed size of decode step: ``sequences`` of ``rows`` rows each (a token and its draft tree)."""

    sequences: int
    rows: int

    @property
    def total(self) -> int:
        return self.sequences * self.rows


def make_buckets(max_running: int) -> list[Bucket]:
    """The buckets of an engine that decodes at most ``max_running`` sequences, the largest first."""
    most = next((n for n in SEQUENCES if n >= max_running), SEQUENCES[-1])
    every = [Bucket(n, rows) for n in SEQUENCES if n <= most for rows in ROWS if n * rows <= MOST_ROWS]
    return sorted(every, key=lambda b: (b.total, b.sequences), reverse=True)


def choose_bucket(buckets: Sequence[Bucket], sequences: int, rows: int) -> Bucket | None:
    """The one with the fewest rows that holds so many sequences of up to ``rows`` rows; None where none does."""
    fitting = [b for b in buckets if b.sequences >= sequences and b.rows >= rows]
    return min(fitting, key=lambda b: (b.total, b.rows), default=None)


def why_not(slices: Sequence[Slice], pool: KVPool) -> str | None:
    """What keeps a step out of every bucket, in a word; None where nothing does."""
    if pool.layout.num_groups > 1:
        return "head_groups"
    for part in slices:
        if part.hidden_rows or part.state_rows:  # a replay shows none
            return "hidden_states"
        if not part.samples or len(part.token_ids) != 1 or part.fills or part.all_logits:
            return "prefill"
        state = part.request.policy
        if state is not None and not state.decodes_densely(part.start + part.num_rows):
            return "sparse_decode"
    return None


@dataclass
class GraphStats:
    """Steps by how they ran.

    Attributes:
        replayed: in a bucket. eager: by why not.
        rows, padded_rows: of the replayed steps, wanted and in all.
        capture_s: what capturing took. refused: why there are no graphs at all, if so.
    """

    replayed: int = 0
    eager: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    padded_rows: int = 0
    capture_s: float = 0.0
    refused: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "eager": dict(self.eager)}


class StaticStep:
    """One bucket's buffers, and the forward that reads them.

    On a GPU every buffer has a pinned twin on the host; `fill` writes the twins and copies them without waiting. The
    step's end waits for the tokens, so the twins are free again when the next step fills them.
    """

    def __init__(self, bucket: Bucket, model: Any, pool: KVPool, max_pages: int, backend: str) -> None:
        self.bucket, self.model, self.pool = bucket, model, pool
        device, total, count = pool.device, bucket.total, bucket.sequences
        self._written: list[tuple[list[Place] | None, int]] = [(None, 0)] * count
        self._host: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}
        self._buffer("token_ids", (total,), torch.int64)
        self._buffer("positions", (total,), torch.int64)
        self._buffer("slots", (total,), torch.int64)
        self._buffer("context_lens", (count,), torch.int32)
        self._buffer("tables", (count, max_pages), torch.int32)
        trees = None
        if bucket.rows > 1:
            square = bucket.rows**2
            self._buffer("trees", (count, bucket.rows, bucket.rows), torch.uint8)
            places = tuple((s * square, bucket.rows) for s in range(count))
            offsets = torch.arange(0, count * square, square, device=device)
            trees = TreeMasks(self._own["trees"].view(-1), offsets, places)
        bounds = list(range(0, total + 1, bucket.rows))
        self.batch = AttnBatch(
            pool=pool,
            cu_seqlens=remember(torch.tensor(bounds, dtype=torch.int32, device=device), bounds),
            context_lens=self._own["context_lens"],
            tables=[GroupTables(self._own["tables"], self._own["slots"])],
            positions=self._own["positions"],
            tree_masks=trees,
            backend=backend,
        )
        self._wanted = torch.arange(total, device=device)

    def forward(self) -> Tensor:
        """The model over the buffers as they are: logits [total, V]."""
        out = self.model(
            input_ids=self._own["token_ids"][None],
            position_ids=self._own["positions"][None],
            use_cache=False,
            attn=self.batch,
            logits_to_keep=self._wanted,
        )
        return out.logits[0]

    def fill(self, slices: Sequence[Slice]) -> None:
        """Put a step into the buffers, padded."""
        host, rows, size = self._host, self.bucket.rows, self.pool.page_size
        by_row = (host[name].view(-1, rows).numpy() for name in ("token_ids", "positions", "slots"))
        token_ids, positions, slots = by_row
        lens = host["context_lens"].numpy()
        used = len(slices)
        token_ids[:], positions[:], slots[:], lens[used:] = 0, 0, -1, 0
        if rows > 1:
            host["trees"].copy_(torch.eye(rows, dtype=torch.uint8).expand_as(host["trees"]))
        for s, part in enumerate(slices):
            count = part.num_rows
            pages = self._write_table(s, part.request.pages, part.start // size)
            order = np.arange(part.start, part.start + count)
            token_ids[s, 0] = part.token_ids[0]
            positions[s] = part.start  # of padded rows too, so that windows stay narrow
            slots[s, :count] = pages[order // size].astype(np.int64) * size + order % size
            if count > 1:
                assert part.tree is not None
                token_ids[s, 1:count] = part.tree.tokens
                positions[s, 1:count] += part.tree.depths[1:]
                host["trees"][s, :count, :count] = torch.from_numpy(tree_mask(1, part.tree.ancestor_mask))
            lens[s] = part.start
        self._copy_in()

    def _write_table(self, s: int, pages: list[Place], num_full: int) -> np.ndarray:
        """Row ``s`` of the block tables, int32; only what may differ from the last step's is written.

        The pages of a sequence's first ``num_full`` places hold its tokens, so they are what they were.
        """
        row: np.ndarray = self._host["tables"].numpy()[s]
        before, known = self._written[s]
        first = min(known, num_full) if before is pages else 0
        row[first : len(pages)] = [place[0] for place in pages[first:]]
        self._written[s] = pages, len(pages)
        return row

    def fill_for_tuning(self) -> None:
        """Put a long context into the buffers: every sequence reads page 0 again and again, and writes nowhere."""
        pages = self._host["tables"].shape[1]
        self._host["context_lens"].fill_(min(TUNING_TOKENS, pages * self.pool.page_size))
        self._host["slots"].fill_(-1)
        for name in ("tables", "token_ids", "positions"):
            self._host[name].zero_()
        if self.bucket.rows > 1:
            self._host["trees"].copy_(torch.eye(self.bucket.rows, dtype=torch.uint8).expand_as(self._host["trees"]))
        self._copy_in()

    def _copy_in(self) -> None:
        for name, own in self._own.items():
            if own is not self._host[name]:
                own.copy_(self._host[name], non_blocking=True)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        on_gpu = self.pool.device.type == "cuda"
        self._host[name] = torch.zeros(shape, dtype=dtype, pin_memory=on_gpu)
        self._own[name] = torch.zeros(shape, dtype=dtype, device=self.pool.device) if on_gpu else self._host[name]


class GraphedRunner(ModelRunner):
    """`ModelRunner` that replays decode steps from buckets and runs the rest as before.

    Args:
        max_pages: pages of the longest sequence.
        capture: turns a step into what replays it; a `GraphCapture`, or `run_eagerly` to prove the padding.
    """

    def __init__(
        self,
        model: Any,
        pool: KVPool,
        buckets: Sequence[Bucket],
        max_pages: int,
        capture: Capture,
        backend: str = "auto",
    ) -> None:
        super().__init__(model, pool, backend)
        self.graphs = GraphStats()
        self._steps: dict[Bucket, tuple[StaticStep, Replay]] = {}
        self._buckets = sorted(buckets, key=lambda b: b.total, reverse=True)
        self._max_pages, self._capture_one = max_pages, capture
        self._capture()

    def keep_stats(self) -> None:
        """As `ModelRunner.keep_stats`; graphs that were captured before do not keep them, so they are captured anew."""
        if not self.pool.keeps_stats:
            super().keep_stats()
            self._capture()

    def _capture(self) -> None:
        began = time.perf_counter()
        self._steps.clear()
        try:
            with torch.inference_mode(), self._on_its_device():
                for bucket in self._buckets:
                    step = StaticStep(bucket, self.model, self.pool, self._max_pages, self.backend)
                    step.fill_for_tuning()
                    self._steps[bucket] = step, self._capture_one(step.forward)
        except RuntimeError as error:  # the model does something that a graph cannot hold, or memory is out
            self._steps.clear()
            self.graphs.refused = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("decode runs without CUDA graphs, which costs time", reason=self.graphs.refused)
        self.graphs.capture_s += time.perf_counter() - began

    @torch.inference_mode()
    def run(self, slices: Sequence[Slice]) -> Forward:
        reason = why_not(slices, self.pool)
        bucket = None
        if reason is None:
            bucket = choose_bucket(list(self._steps), len(slices), max(part.num_rows for part in slices))
            reason = "no_bucket" if bucket is None else None
        if bucket is None:
            self.graphs.eager[reason or ""] += 1
            return super().run(slices)
        step, replay = self._steps[bucket]
        with self._on_its_device():
            step.fill(slices)
            logits, first_row = _real_rows(replay(), slices, bucket.rows)
        self.graphs.replayed += 1
        self.graphs.rows += sum(part.num_rows for part in slices)
        self.graphs.padded_rows += bucket.total
        kernels = {f"{name}+graph" for name in step.batch.kernels}
        return Forward(logits, first_row, kernels)

    def figures(self) -> dict[str, Any]:
        return {**super().figures(), "cuda_graphs": self.graphs.as_dict()}


def _real_rows(logits: Tensor, slices: Sequence[Slice], rows: int) -> tuple[Tensor, list[int]]:
    """The logits of the slices' own rows, in a tensor of their own, and where each slice's begin."""
    index: list[int] = []
    first_row = []
    for s, part in enumerate(slices):
        first_row.append(len(index))
        index += range(s * rows, s * rows + part.num_rows)
    at = torch.tensor(index)
    if logits.is_cuda:
        at = at.pin_memory().to(logits.device, non_blocking=True)
    return logits.index_select(0, at), first_row


class GraphCapture:
    """Captures steps as CUDA graphs, which share one memory: they never run at the same time."""

    def __init__(self) -> None:
        self._memory: Any = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], Tensor]) -> Replay:
        """Run the step twice on a stream of its own, for tuning and lazy set-up, then record it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads do with the GPU meanwhile (an embedder, say) is their own affair.
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            out = step()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


def run_eagerly(step: Callable[[], Tensor]) -> Replay:
    """Run the step anew each time: what a replay does, without a graph."""
    return step
