"""Decode steps replayed as CUDA graphs, with the unmodified transformers model.

A forward of a few rows is hundreds of small kernels, and launching them takes longer than running them. A graph
launches them all at once, but with the same addresses and shapes each time. So a decode step runs in a *bucket*: up to
so many sequences of so many rows in all, in buffers that stay where they are. The step's rows are packed one sequence
behind the other, so a long draft beside plain decodes needs no room for drafts that the others have not. How attention
is cut into programs is planned on the host and copied in with the tokens (`sparse_attn.kernels.work`). What is left
over is padding: rows of one more sequence without a context, written to slot -1, the pool's scratch page.

Where the engine's default policy selects pages in decode, each bucket is captured a second time with the selection
inside (`sparse_attn.plan.graph_selection`).

Padded rows are finite, read nothing that is not there and are dropped from the logits. Buckets are captured when the
engine starts, the largest first, so that the smaller ones find room in its memory. What no bucket holds (prefill,
sparse decode, head groups) is replayed in pieces around its attention (`pieces`), or runs as before; `GraphStats`
counts all three and says why.

The choice of the bucket and the padding need no GPU: with `run_eagerly` for `GraphCapture` a step runs from the same
buffers on any device, which is how the tests hold it to the ordinary runner.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor

from drafters.tree import EMPTY, DraftTree
from service.engine.block_manager import GONE, Place
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.runner.model_runner import Forward, ModelRunner, tree_mask
from service.engine.runner.pieces import PiecedForwards, Recorder, record_whole
from service.engine.sampling.sampler import RowKeys, choose_tokens
from service.engine.step import Slice
from sparse_attn.batch import AttnBatch, GroupTables
from sparse_attn.host_values import changing
from sparse_attn.kernels import INVARIANT
from sparse_attn.kernels.fixed_work import FixedTiling
from sparse_attn.kernels.work import FIELDS, PREFILL_ROWS, Launch, Tiling
from sparse_attn.kv.pool import KVPool
from sparse_attn.plan.graph_selection import DecodedRows, GraphRule, GraphSelection
from sparse_attn.plan.policy import ModelShape, Policy
from sparse_attn.plan.state import PolicyState
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


def why_not(slices: Sequence[Slice], pool: KVPool, rule: GraphRule | None = None) -> str | None:
    """What keeps a step out of every bucket, in a word; None where nothing does. ``rule``: what buckets select by."""
    if pool.layout.num_groups > 1:
        return "head_groups"
    for part in slices:
        if part.hidden_rows or part.state_rows:  # a replay shows none
            return "hidden_states"
        if part.appended is not None:
            return "appended"
        if not part.samples or len(part.token_ids) != 1 or part.fills or part.all_logits:
            return "prefill"
        state = sparse_state(part)
        if state is not None and (rule is None or part.start < state.prompt_len or not rule.holds(state)):
            return "sparse_decode"
    return None


def sparse_state(part: Slice) -> PolicyState | None:
    """The policy by which a decoding slice leaves keys out; None where it sees all."""
    state = part.request.policy
    return None if state is None or state.decodes_densely(part.start + part.num_rows) else state


@dataclass
class GraphStats:
    """Steps by how they ran.

    Attributes:
        replayed: in a bucket. pieced: in pieces, by why not in a bucket. eager: in neither, by the same.
        rows, padded_rows: of the replayed steps, wanted and in all.
        capture_s: what capturing took. refused: why there are no graphs at all, if so, or no pieces.
    """

    replayed: int = 0
    pieced: Counter[str] = field(default_factory=Counter)
    eager: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    padded_rows: int = 0
    capture_s: float = 0.0
    refused: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "pieced": dict(self.pieced), "eager": dict(self.eager)}


class StaticStep:
    """One bucket's buffers, and the forward that reads them.

    On a GPU every buffer has a pinned twin on the host; `fill` writes the twins and copies them without waiting. Before
    it writes them again it waits for that copy, which is done long since.

    With a ``rule`` sequences may decode by it: each sparse layer selects their pages within the graph.
    """

    def __init__(
        self, bucket: Bucket, model: Any, pool: KVPool, max_pages: int, backend: str, rule: GraphRule | None = None
    ) -> None:
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
        self.selection: GraphSelection | None = None
        if rule is not None:
            places = own["tables"], own["context_lens"]
            self.selection = GraphSelection(rule, rows, self._tiling, *places, self._buffer, self._host, own)
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
            selection=self.selection,
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
        if self.selection is not None:
            rows = [positions[begin:end].tolist() for begin, end in pairwise(bounds)]
            self.selection.fill([_decoded(*of) for of in zip(slices, rows, (at for at, _ in places), strict=True)])
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
        if self.selection is not None:
            mask, state = torch.eye(each, dtype=torch.bool), self.selection.rule.state(context)
            siblings = [context] * each  # each selects
            self.selection.fill([DecodedRows(context, siblings, mask, first, state) for first, _ in masks])
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
        row[first : len(pages)] = [place[0] if place[0] != GONE else self.pool.num_pages for place in pages[first:]]
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


def _decoded(part: Slice, positions: list[int], tree: int) -> DecodedRows:
    mask = torch.from_numpy(tree_mask(1, part.tree.ancestor_mask)) if part.tree is not None else None
    return DecodedRows(part.start, positions, mask, tree, sparse_state(part))


class GraphedRunner(ModelRunner):
    """`ModelRunner` that replays decode steps from buckets and runs the rest as before.

    Steps are captured once: where a policy wants page statistics later, they are brought up to date behind the replays.

    Args:
        max_pages: pages of the longest sequence.
        capture: turns a step into what replays it; a `GraphCapture`, or `run_eagerly` to prove the padding.
        recorder, sizes: captures forwards in pieces, and of how many rows; None for no pieces.
        rule: by which sequences may select pages within buckets.
    """

    def __init__(
        self,
        model: Any,
        pool: KVPool,
        buckets: Sequence[Bucket],
        max_pages: int,
        capture: Capture,
        backend: str = "auto",
        recorder: Recorder | None = None,
        sizes: Sequence[int] = (),
        rule: GraphRule | None = None,
    ) -> None:
        super().__init__(model, pool, backend)
        self.graphs = GraphStats()
        self._buckets = sorted(buckets, key=lambda b: b.rows, reverse=True)
        self._max_pages, self._capture_one = max_pages, capture
        self._pieces: PiecedForwards | None = None
        self._keep_stats_themselves = pool.keeps_stats
        self.steps = self._capture()
        self._rule = rule if backend != INVARIANT and pool.layout.num_groups == 1 else None
        self.selecting = self._capture(self._rule) if self._rule is not None else {}
        if recorder is not None and self.graphs.refused is None:
            self._capture_pieces(recorder, sizes)

    def run_the_rest(self, policy: Policy | None = None, shape: ModelShape | None = None) -> None:
        """What is launched outside of buckets, once, in the pool's scratch page: no request waits for a compilation.

        Chunks and drafts of each width that has tiles of its own, behind nothing and behind a long context, the end of
        a prompt under the engine's default policy, and the choice of a token with and without cuts.
        """
        model: Any = self.model
        group = model.config.get_text_config().num_attention_heads // self.pool.shape.num_kv_heads
        size, most = self.pool.page_size, PREFILL_ROWS
        long = max(0, min(TUNING_TOKENS, self._max_pages * size - most))
        request = Request("first", [0], SamplingParams())
        request.pages = [(self.pool.num_pages,) * self.pool.layout.num_groups] * self._max_pages
        for width in sorted({1, max(1, 16 // group), max(1, 32 // group), most - 1, most}):
            slices = [Slice(request, start, [0] * width, samples=True) for start in (0, long)]
            if 1 < width < most:
                tree = DraftTree.chain([0] * (width - 1))
                slices += [Slice(request, start, [0], samples=True, tree=tree) for start in (0, long)]
            for part in slices:
                logits = super().run([part]).logits
        if policy is not None and shape is not None:
            gate = policy.prefill_gate // size * size
            for start in (gate, gate + most):
                if start + most <= min(self._max_pages * size, shape.max_length or start + most):
                    request.policy = self.policy_state(policy, shape, start + most)
                    super().run([Slice(request, start, [0] * most, samples=True)])
        for params in (SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, top_p=0.5)):
            choose_tokens(logits[:1], RowKeys([params], [EMPTY], [1]))

    def _capture(self, rule: GraphRule | None = None) -> dict[Bucket, tuple[StaticStep, Replay]]:
        """Every bucket; none where the model cannot be captured."""
        began = time.perf_counter()
        steps: dict[Bucket, tuple[StaticStep, Replay]] = {}
        try:
            with torch.inference_mode(), self._on_its_device():
                for bucket in self._buckets:
                    step = StaticStep(bucket, self.model, self.pool, self._max_pages, self.backend, rule)
                    step.fill_for_tuning()
                    steps[bucket] = step, self._capture_one(step.forward)
        except RuntimeError as error:  # the model does something that a graph cannot hold, or memory is out
            steps.clear()
            self.graphs.refused = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning(
                "decode runs without CUDA graphs, which costs time; FOLIO_CUDA_GRAPHS=false spares the attempt",
                reason=self.graphs.refused,
            )
        self.graphs.capture_s += time.perf_counter() - began
        return steps

    def _capture_pieces(self, recorder: Recorder, sizes: Sequence[int]) -> None:
        began = time.perf_counter()
        try:
            with torch.inference_mode(), self._on_its_device():
                self._pieces = PiecedForwards(self.model, self.pool, sizes, recorder)
        except RuntimeError as error:
            self.graphs.refused = f"in pieces: {type(error).__name__}: {error}".splitlines()[0]
            log.warning("prompts beside decodes run without CUDA graphs, which costs time", reason=self.graphs.refused)
        self.graphs.capture_s += time.perf_counter() - began

    def _unwatched(self, batch: AttnBatch, token_ids: Tensor, wanted: list[int]) -> Tensor:
        if self._pieces is not None and self._pieces.takes(len(token_ids), len(wanted)):
            return self._pieces(batch, token_ids, wanted)
        return super()._unwatched(batch, token_ids, wanted)

    @torch.inference_mode()
    def run(self, slices: Sequence[Slice], pending: Tensor | None = None) -> Forward:
        reason = why_not(slices, self.pool, self._rule)
        bucket, counts = None, [part.num_rows for part in slices]
        steps = self.steps
        if reason is None:
            steps = self.selecting if any(map(sparse_state, slices)) else self.steps
            bucket = choose_bucket(list(steps), counts)
            reason = "no_bucket" if bucket is None else None
        if bucket is None:
            forward = super().run(slices, pending)
            pieced = any(name.endswith("+pieces") for name in forward.kernels)
            (self.graphs.pieced if pieced else self.graphs.eager)[reason or ""] += 1
            return forward
        step, replay = steps[bucket]
        with self._on_its_device():
            step.fill(slices, pending)
            logits = replay()[: sum(counts)].clone()  # the next step writes where they lie
            if self.pool.keeps_stats and not self._keep_stats_themselves:
                self.pool.update_stats(step.batch.tables[0].slot_mapping)
            if step.selection is not None:
                step.selection.remember()
        self.graphs.replayed += 1
        self.graphs.rows += sum(counts)
        self.graphs.padded_rows += bucket.rows
        kernels = {f"{name}+graph" for name in step.batch.kernels}
        return Forward(logits, list(accumulate(counts[:-1], initial=0)), kernels)

    def figures(self) -> dict[str, Any]:
        return {**super().figures(), "cuda_graphs": self.graphs.as_dict()}


class GraphCapture:
    """Captures steps, and pieces of them (a `Recorder`), as CUDA graphs.

    They share one memory: they never run at the same time, and pieces run in the order of their capture.
    """

    def __init__(self) -> None:
        self._memory: Any = torch.cuda.graph_pool_handle()
        self._open: tuple[Any, Any] | None = None

    def __call__(self, step: Callable[[], Tensor]) -> Replay:
        """Run the step twice on a stream of its own, for tuning and lazy set-up, then record it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        return record_whole(self, step)

    def begin(self) -> None:
        """As `Recorder.begin`."""
        graph = torch.cuda.CUDAGraph()
        # What other threads do with the GPU meanwhile (an embedder, say) is their own affair.
        capture = torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local")
        capture.__enter__()
        self._open = graph, capture

    def end(self) -> Callable[[], Any]:
        """As `Recorder.end`."""
        assert self._open is not None
        (graph, capture), self._open = self._open, None
        capture.__exit__(None, None, None)
        replay: Callable[[], Any] = graph.replay
        return replay


def run_eagerly(step: Callable[[], Tensor]) -> Replay:
    """Run the step anew each time: what a replay does, without a graph."""
    return step
