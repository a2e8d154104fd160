"""Decode steps replayed as CUDA graphs, with the unmodified transformers model.

A forward of a few rows is hundreds of small kernels, and launching them takes longer than running them. A graph
launches them all at once, but with the same addresses and shapes each time. So a decode step runs in a *bucket*: up to
so many sequences of so many rows in all, in buffers that stay where they are. The step's rows are packed one sequence
behind the other, so a long draft beside plain decodes needs no room for drafts that the others have not. How attention
is cut into programs is planned on the host and copied in with the tokens (`sparse_attn.kernels.work`). What is left
over is padding: rows of one more sequence without a context, written to slot -1, the pool's scratch page.

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
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor

from service.engine.block_manager import Place
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.runner.model_runner import Forward, ModelRunner, tree_mask
from service.engine.step import Slice
from sparse_attn.batch import AttnBatch, GroupTables
from sparse_attn.host_values import changing
from sparse_attn.kernels import INVARIANT
from sparse_attn.kernels.fixed_work import FixedTiling
from sparse_attn.kernels.work import FIELDS, PREFILL_ROWS, Launch, Tiling
from sparse_attn.kv.pool import KVPool
from sparse_attn.tree_masks import TreeMasks

log = structlog.get_logger(__name__)

SEQUENCES = (1, 2, 4, 8, 16, 32, 64)
WIDEST = 65  # rows of one sequence: a token and a draft of 64
ROWS_EACH = (1, 9, 17, 33, WIDEST)  # on average over the sequences of a bucket
MOST_ROWS = 16 * WIDEST  # of a bucket: more are bound by computing, not by launching
TUNING_TOKENS = 4096  # context while kernels are tuned: an empty one would choose for nothing

Replay = Callable[[], Tensor]
Capture = Callable[[Callable[[], Tensor]], Replay]


@dataclass(frozen=True)
class Bucket:
    """A size of decode step: up to ``sequences``, each a token and its draft tree, of ``rows`` rows in all."""

    sequences: int
    rows: int

    @property
    def widest(self) -> int:
        """Most rows of one sequence."""
        return min(WIDEST, self.rows - self.sequences + 1)


def make_buckets(max_running: int) -> list[Bucket]:
    """The buckets of an engine that decodes at most ``max_running`` sequences, the largest first."""
    most = next((n for n in SEQUENCES if n >= max_running), SEQUENCES[-1])
    every = [Bucket(n, n * each) for n in SEQUENCES if n <= most for each in ROWS_EACH if n * each <= MOST_ROWS]
    return sorted(every, key=lambda b: (b.rows, b.sequences), reverse=True)


def choose_bucket(buckets: Sequence[Bucket], counts: Sequence[int]) -> Bucket | None:
    """The one with the fewest rows that holds sequences of so many rows each; None where none does."""
    rows, widest = sum(counts), max(counts)
    fitting = [b for b in buckets if b.sequences >= len(counts) and b.rows >= rows and b.widest >= widest]
    return min(fitting, key=lambda b: (b.rows, b.sequences), default=None)


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

    On a GPU every buffer has a pinned twin on the host; `fill` writes the twins and copies them without waiting. Before
    it writes them again it waits for that copy, which is done long since.
    """

    def __init__(self, bucket: Bucket, model: Any, pool: KVPool, max_pages: int, backend: str) -> None:
        self.bucket, self.model, self.pool = bucket, model, pool
        count, rows = bucket.sequences, bucket.rows
        self._written: list[tuple[list[Place] | None, int]] = [(None, 0)] * count
        self._copied: Any = None  # event of the last copy
        self._host: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}
        sizes = (model.config.get_text_config().num_attention_heads, pool.shape.num_kv_heads, pool.page_size)
        invariant = backend == INVARIANT
        self._tiling = FixedTiling.of_model(*sizes) if invariant else Tiling.of(bucket.widest, *sizes)
        items = self._tiling.most_items(rows, count, max_pages)
        for name in ("token_ids", "positions", "slots"):
            self._buffer(name, (rows,), torch.int64)
        self._buffer("cu_seqlens", (count + 2,), torch.int32)  # of the sequences, and of the padding
        self._buffer("context_lens", (count + 1,), torch.int32)
        self._buffer("tables", (count + 1, max_pages), torch.int32)
        self._buffer("items", (items, len(FIELDS)), torch.int32)
        self._buffer("joins", (rows, 3), torch.int32)
        if bucket.widest > 1:
            self._buffer("trees", (rows * bucket.widest,), torch.uint8)
            self._buffer("tree_offsets", (count + 1,), torch.int64)
        own = self._own
        parts = self._tiling.most_parts(rows, count, max_pages)
        launch = Launch(self._tiling, own["items"], own["joins"], parts)
        self._kept = {(Launch, pool.shape.num_kv_heads): launch}
        self.batch = AttnBatch(
            pool=pool,
            cu_seqlens=changing(own["cu_seqlens"]),
            context_lens=changing(own["context_lens"]),
            tables=[GroupTables(own["tables"], own["slots"])],
            positions=own["positions"],
            backend=backend,
            decode_only=True,
        )

    def forward(self) -> Tensor:
        """The model over the buffers as they are: logits [rows, V]."""
        out = self.model(
            input_ids=self._own["token_ids"][None],
            position_ids=self._own["positions"][None],
            use_cache=False,
            attn=self.batch,
            logits_to_keep=0,  # all of them
        )
        return out.logits[0]  # type: ignore[no-any-return]

    def fill(self, slices: Sequence[Slice], pending: Tensor | None = None) -> None:
        """Put a step into the buffers, padded; ``pending`` as of `ModelRunner.run`."""
        self._wait()
        host, size = self._host, self.pool.page_size
        token_ids, positions, slots = (host[name].numpy() for name in ("token_ids", "positions", "slots"))
        token_ids[:], positions[:], slots[:] = 0, 0, -1
        places: list[tuple[int, int]] = []
        bounds, end, mask_end = [0], 0, 0
        for s, part in enumerate(slices):
            count = part.num_rows
            at = slice(end, end + count)
            pages = self._write_table(s, part.request.pages, part.start // size)
            order = np.arange(part.start, part.start + count)
            token_ids[end] = part.token_ids[0]
            positions[at] = part.start
            slots[at] = pages[order // size].astype(np.int64) * size + order % size
            if count > 1:
                assert part.tree is not None
                token_ids[end + 1 : end + count] = part.tree.tokens
                positions[end + 1 : end + count] += part.tree.depths[1:]
                mask = torch.from_numpy(tree_mask(1, part.tree.ancestor_mask)).flatten()
                host["trees"][mask_end : mask_end + len(mask)] = mask
                places.append((mask_end, count))
                mask_end += len(mask)
            else:
                places.append((-1, 0))
            end += count
            bounds.append(end)
        self._set_lengths(bounds, [part.start for part in slices], places)
        self._copy_in()
        if pending is not None:
            self._own["token_ids"][: len(pending)].copy_(pending)

    def fill_for_tuning(self) -> None:
        """Put long contexts into the buffers: every sequence reads the pool's first pages and writes nowhere."""
        self._wait()
        count, each = self.bucket.sequences, self.bucket.rows // self.bucket.sequences
        pages = self._host["tables"].shape[1]
        for name in ("token_ids", "positions"):
            self._host[name].zero_()
        self._host["slots"].fill_(-1)
        self._host["tables"].copy_(torch.arange(pages) % self.pool.num_pages)
        if self.bucket.widest > 1:
            self._host["trees"].fill_(1)
        context = max(0, min(TUNING_TOKENS, pages * self.pool.page_size - each))
        masks = [(0, each) if each > 1 else (-1, 0)] * count
        self._set_lengths(list(range(0, count * each + 1, each)), [context] * count, masks)
        self._copy_in()

    def _set_lengths(self, bounds: list[int], contexts: list[int], places: list[tuple[int, int]]) -> None:
        """Put in how many rows each sequence has, and how attention is cut; makes the batch that says so on the host.

        ``places``: of each sequence, where its tree's mask begins (-1: causal) and of how many rows it is.
        """
        host, used, end = self._host, len(contexts), bounds[-1]
        cu_seqlens, context_lens = host["cu_seqlens"].numpy(), host["context_lens"].numpy()
        cu_seqlens[:] = [*bounds, *[end] * (self.bucket.sequences - used), self.bucket.rows]
        context_lens[:used], context_lens[used:] = contexts, 0
        work = self._tiling.plan(bounds, contexts, [first for first, _ in places])
        items, joins = host["items"].numpy(), host["joins"].numpy()
        items[: len(work.items)], items[len(work.items) :] = work.items, 0
        joins[:end], joins[end:] = work.joins, 0
        masks = None
        if self.bucket.widest > 1:
            every = places + [(-1, 0)] * (self.bucket.sequences + 1 - used)
            host["tree_offsets"].numpy()[:] = [first for first, _ in every]
            masks = TreeMasks(self._own["trees"], self._own["tree_offsets"], tuple(every))
        self.batch = replace(self.batch, tree_masks=masks)  # which forgets what was made of the last step's lengths
        self.batch.kept.update(self._kept)

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

    def _wait(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()

    def _copy_in(self) -> None:
        for name, own in self._own.items():
            if own is not self._host[name]:
                own.copy_(self._host[name], non_blocking=True)
        if self.pool.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        on_gpu = self.pool.device.type == "cuda"
        self._host[name] = torch.zeros(shape, dtype=dtype, pin_memory=on_gpu)
        self._own[name] = torch.zeros(shape, dtype=dtype, device=self.pool.device) if on_gpu else self._host[name]


class GraphedRunner(ModelRunner):
    """`ModelRunner` that replays decode steps from buckets and runs the rest as before.

    Steps are captured once: where a policy wants page statistics later, they are brought up to date behind the replays.

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
        self.steps: dict[Bucket, tuple[StaticStep, Replay]] = {}
        self._buckets = sorted(buckets, key=lambda b: b.rows, reverse=True)
        self._max_pages, self._capture_one = max_pages, capture
        self._capture()
        self._read_a_prompt()

    def _read_a_prompt(self) -> None:
        """A chunk into the pool's scratch page, so that no request waits for a compilation."""
        request = Request("first", [0] * PREFILL_ROWS, SamplingParams())
        scratch = (self.pool.num_pages,) * self.pool.layout.num_groups
        request.pages = [scratch] * -(-PREFILL_ROWS // self.pool.page_size)
        super().run([Slice(request, 0, request.token_ids, samples=True)])

    def _capture(self) -> None:
        began = time.perf_counter()
        self._keep_stats_themselves = self.pool.keeps_stats
        try:
            with torch.inference_mode(), self._on_its_device():
                for bucket in self._buckets:
                    step = StaticStep(bucket, self.model, self.pool, self._max_pages, self.backend)
                    step.fill_for_tuning()
                    self.steps[bucket] = step, self._capture_one(step.forward)
        except RuntimeError as error:  # the model does something that a graph cannot hold, or memory is out
            self.steps.clear()
            self.graphs.refused = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("decode runs without CUDA graphs, which costs time", reason=self.graphs.refused)
        self.graphs.capture_s += time.perf_counter() - began

    @torch.inference_mode()
    def run(self, slices: Sequence[Slice], pending: Tensor | None = None) -> Forward:
        reason = why_not(slices, self.pool)
        bucket, counts = None, [part.num_rows for part in slices]
        if reason is None:
            bucket = choose_bucket(list(self.steps), counts)
            reason = "no_bucket" if bucket is None else None
        if bucket is None:
            self.graphs.eager[reason or ""] += 1
            return super().run(slices, pending)
        step, replay = self.steps[bucket]
        with self._on_its_device():
            step.fill(slices, pending)
            logits = replay()[: sum(counts)].clone()  # the next step writes where they lie
            if self.pool.keeps_stats and not self._keep_stats_themselves:
                self.pool.update_stats(step.batch.tables[0].slot_mapping)
        self.graphs.replayed += 1
        self.graphs.rows += sum(counts)
        self.graphs.padded_rows += bucket.rows
        kernels = {f"{name}+graph" for name in step.batch.kernels}
        return Forward(logits, list(accumulate(counts[:-1], initial=0)), kernels)

    def figures(self) -> dict[str, Any]:
        return {**super().figures(), "cuda_graphs": self.graphs.as_dict()}


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
