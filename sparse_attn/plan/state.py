"""A policy in force for one sequence: from the new rows of a layer to the blocks that they visit.

A `PolicyState` turns the new rows of a layer into a `BlockIndex`, or None for dense, and remembers page selections
between steps. What a row sees depends on its position and on the keys before it alone, never on how the rows were
batched:

* rows at positions below `prompt_len` follow the prefill patterns, later rows the decode rule;
* rows at positions below a policy's gate are dense;
* in decode, time is cut into intervals of C positions from `prompt_len` on. All rows of an interval use the page
  selection that the interval's first row made (LServe's reusable selection), on pages that lie wholly before the
  recent window. So the rows of a draft tree select exactly what plain decoding would have selected.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from sparse_attn.blocks import PAD, BlockIndex
from sparse_attn.errors import PolicyError
from sparse_attn.host_values import on_device
from sparse_attn.kernels.operands import Skip
from sparse_attn.plan.grid import Grid
from sparse_attn.plan.patterns import Dense, Pattern
from sparse_attn.plan.policy import DecodeRule, ModelShape, PageSelection, Policy
from sparse_attn.plan.select import best_pages, page_weights
from sparse_attn.rows import SequenceRows


@dataclass
class PlanStats:
    """What planning cost and saved, for one sequence.

    Attributes:
        visited, causal: key blocks times heads, as in `BlockIndex.density`; dense layers count in full. Tensors where
            the counts are a GPU's, for which only the reader waits.
        index_seconds: host time spent on scores, selection and indices.
        late_selections: page selections made for want of the interval's own (after a resumption).
        tiles: `Skip.counts`.
    """

    visited: float | Tensor = 0.0
    causal: float | Tensor = 0.0
    index_seconds: float = 0.0
    late_selections: int = 0
    tiles: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.int64))

    @property
    def density(self) -> float:
        causal = float(self.causal)
        looked_at, left_out = self.tiles.tolist()
        kept = 1.0 - left_out / looked_at if looked_at else 1.0
        return kept * float(self.visited) / causal if causal else kept

    def add(self, visited: float | Tensor, causal: float | Tensor) -> None:
        """Count what one plan visits."""
        self.visited = self.visited + visited
        self.causal = self.causal + causal


@dataclass(frozen=True)
class Selection:
    """Pages that the heads of a layer visit beside the sinks.

    Attributes:
        position: of the row that chose them.
        middle: int32 [Hkv, k], pages chosen by their bounds, padded with -1; None for none.
        first_recent: int64 [Hkv], every page from this one on.
    """

    position: int
    middle: Tensor | None
    first_recent: Tensor


@dataclass
class PolicyState:
    """A policy in force for one sequence. Keep it as long as the sequence, through preemption too.

    Call `plan` once a layer and forward, in any order of layers, and `commit` after a forward with a draft tree.

    Attributes:
        policy: the policy asked for; from the first moment on the one that it resolves to.
        prefill_stats, decode_stats: what planning cost and saved.
        selected: by layer, the selection of the interval at hand.
        pending: by layer and row, the selections that rows of the last forward made.
    """

    policy: Policy
    model: ModelShape
    prompt_len: int
    prefill_stats: PlanStats = field(default_factory=PlanStats)
    decode_stats: PlanStats = field(default_factory=PlanStats)
    selected: dict[int, Selection] = field(default_factory=dict)
    pending: dict[int, dict[int, Selection]] = field(default_factory=dict)
    _tile_means: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _decoded: dict[int, tuple[tuple[Selection, list[int], int], BlockIndex]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.policy = self.policy.resolve(self.prompt_len, self.model)

    @property
    def _prefill_gate(self) -> int:
        """In whole query blocks, so that it does not matter where a chunk ends."""
        return self.policy.prefill_gate // self.policy.block * self.policy.block

    def max_rows(self, position: int) -> int | None:
        """Most rows from ``position`` on that one plan may cover; None for no limit.

        A forward must not cross the end of the prompt, nor run ahead of the recent window in decode.
        """
        if position < self.prompt_len:
            return self.prompt_len - position
        return min((r.selection.recent for r in self.rules if r is not None and r.selection is not None), default=None)

    @cached_property
    def rules(self) -> list[DecodeRule | None]:
        """What each layer visits in decode."""
        return [self.policy.decode(layer, self.model) for layer in range(self.model.num_layers)]

    @property
    def skips_in_decode(self) -> bool:
        """Whether decode rows may leave out tiles, which is a matter of the rows and of no index."""
        return self.policy.skips(prefill=False)[0] > 0

    def decodes_densely(self, length: int) -> bool:
        """Whether decode rows of a sequence that has ``length`` tokens with them are dense in every layer."""
        share, gate = self.policy.skips(prefill=False)
        if share and length > gate:
            return False
        return length <= self.policy.decode_gate or all(rule is None for rule in self.rules)

    def sees_all(self, layer: int, length: int, window: int) -> bool:
        """Whether decode rows of a sequence of ``length`` tokens with them are dense in a layer of this window."""
        rule = self.rules[layer]
        # Nothing to gain in a layer whose own sliding window is no wider than what would be kept.
        narrow = rule is not None and rule.selection is not None and 0 < window <= rule.selection.budget
        return rule is None or narrow or length <= self.policy.decode_gate

    def plan(self, rows: SequenceRows) -> BlockIndex | None:
        """The index of a layer's new rows over all keys up to them, or None for dense; pass it through `split`.

        Raises:
            PolicyError: the rows cross the end of the prompt, or page statistics are wanted and missing.
        """
        if rows.context_len >= self.prompt_len:
            return self.plan_decode(rows)
        if rows.length > self.prompt_len:
            raise PolicyError(
                f"rows {rows.context_len} to {rows.length} cross the end of the prompt at {self.prompt_len}"
            )
        return self.plan_prefill(rows)

    def skip(self, context_len: int, device: torch.device | str = "cpu") -> Skip | None:
        """What tiles the rows behind so many tokens may leave out; they are counted on the device of the rows."""
        prefill = context_len < self.prompt_len
        share, gate = self.policy.skips(prefill)
        stats = self.prefill_stats if prefill else self.decode_stats
        if not share:
            return None
        stats.tiles = stats.tiles.to(device)
        return Skip(share, gate, stats.tiles)

    def commit(self, accepted: Sequence[int]) -> None:
        """Tell which rows of the last forward stay, root first: their selections hold for what follows."""
        for layer, pending in self.pending.items():
            kept = [pending[row] for row in accepted if row in pending]
            if kept:
                self.selected[layer] = max(kept, key=lambda s: s.position)
        self.pending.clear()

    # --- prefill ---------------------------------------------------------------------------------------------

    def plan_prefill(self, rows: SequenceRows) -> BlockIndex | None:
        """As `plan`, for rows of the prompt."""
        began = time.perf_counter()
        rows = replace(rows, tile_means=self._tile_means)
        patterns = self.policy.prefill(rows.layer, self.model, self.prompt_len)
        grid = Grid.of(rows, self.policy.block, self.policy.block)
        dense = rows.length <= self._prefill_gate or all(isinstance(p, Dense) for p in patterns)
        index = None if dense else _unless_full(self._prefill_index(rows, grid, patterns))
        if rows.length == self.prompt_len:  # the last chunk: what served the next ones is worthless now
            self._tile_means = {at: means for at, means in self._tile_means.items() if at[0] != rows.layer}
        self._count(self.prefill_stats, index, grid, began)
        return index

    def _prefill_index(self, rows: SequenceRows, grid: Grid, patterns: Sequence[Pattern]) -> BlockIndex:
        num_heads = rows.q.shape[1]
        if len(patterns) == 1:
            visited = patterns[0].visit(rows, grid, range(num_heads))
        else:
            shape = (num_heads, grid.num_query_blocks, grid.num_key_blocks)
            visited = torch.zeros(shape, dtype=torch.bool, device=rows.q.device)
            for pattern in set(patterns):
                heads = [h for h, own in enumerate(patterns) if own == pattern]
                visited[heads] = pattern.visit(rows, grid, heads)
        visited = visited | (grid.start < self._prefill_gate)[:, None]
        if rows.window:
            visited &= (grid.key_blocks + 1) * grid.block_k - 1 > (grid.start - rows.window)[:, None]
        page_size = self.model.page_size
        per_page = visited.repeat_interleave(grid.block_k // page_size, dim=-1)
        per_page = per_page[..., : -(-rows.length // page_size)]
        return BlockIndex.from_mask(
            _per_kv_head(per_page, patterns, rows.k.shape[1]),
            [rows.num_rows],
            [rows.context_len],
            block_q=grid.block_q,
            block_k=page_size,
            width=per_page.shape[-1] if per_page.is_cuda else None,
        )

    # --- decode ----------------------------------------------------------------------------------------------

    def plan_decode(self, rows: SequenceRows) -> BlockIndex | None:
        """As `plan`, for the last token and the nodes of a draft below it, or a run of generated text."""
        rule = self.rules[rows.layer]
        if rule is None or self.sees_all(rows.layer, rows.length, rows.window):
            self._count(self.decode_stats, None, Grid.of(rows, 1, self.model.page_size), time.perf_counter())
            return None
        began = time.perf_counter()
        index = _unless_full(self._decode_index(rows, rule))
        self._count(self.decode_stats, index, Grid.of(rows, 1, self.model.page_size), began)
        return index

    def _decode_index(self, rows: SequenceRows, rule: DecodeRule) -> BlockIndex:
        """The index of decode rows; within an interval and a page it is the last one, moved on."""
        selections, runs = self._selections(rows, rule)
        page_size = self.model.page_size
        made_of = (selections[0], runs, -(-rows.length // page_size))
        known = self._decoded.get(rows.layer)
        if len(runs) == 1 and known is not None and known[0][0] is made_of[0] and known[0][1:] == made_of[1:]:
            return replace(known[1], q_offset=known[1].q_offset.new_tensor([rows.context_len]))
        visited = torch.stack([self._pages_of(s, rule, rows) for s in selections], dim=1)
        index = BlockIndex.of_runs(visited, runs, rows.context_len, block_k=page_size)
        self._decoded[rows.layer] = (made_of, index)
        return index

    def _selections(self, rows: SequenceRows, rule: DecodeRule) -> tuple[list[Selection], list[int]]:
        """The selection of each run of rows, and the runs' lengths."""
        positions = rows.row_positions.tolist()
        layer, made = rows.layer, dict[int, Selection]()
        sources = [
            source_row(i, self.interval_start(p, rule), positions, rows.tree_mask) for i, p in enumerate(positions)
        ]
        for row in sorted({s for s in sources if s is not None}):
            made[row] = self._select(rows, rule, row, positions[row])
        start = self.interval_start(positions[0], rule)
        if 0 in made:  # the root is a committed token, and so is what it chose
            self.selected[layer] = made[0]
        elif self.selected.get(layer) is None or self.selected[layer].position != start:
            self.decode_stats.late_selections += 1
            self.selected[layer] = self._select(rows, rule, 0, start)
        self.pending[layer] = made
        before = self.selected[layer]

        selections: list[Selection] = []
        runs: list[int] = []
        for source in sources:
            selection = before if source is None else made[source]
            if selections and selections[-1] is selection:
                runs[-1] += 1
            else:
                selections.append(selection)
                runs.append(1)
        return selections, runs

    def interval_start(self, position: int, rule: DecodeRule) -> int:
        return position - (position - self.prompt_len) % rule.interval

    def _select(self, rows: SequenceRows, rule: DecodeRule, row: int, position: int) -> Selection:
        """What ``row`` chooses, as of ``position``."""
        page_size, num_kv_heads = self.model.page_size, rows.k.shape[1]
        device = rows.q.device
        first_recent = torch.zeros(num_kv_heads, dtype=torch.int64, device=device)
        if position < self.policy.decode_gate:
            return Selection(position, None, first_recent)
        middle = None
        choice = rule.selection
        if choice is not None:
            end = max(position - choice.recent + 1, 0) // page_size
            first_recent.fill_(end)
            if len(rule.streaming) < num_kv_heads:
                middle = self._choose_pages(rows, choice, row, end)
        if rule.streaming:
            first_recent[list(rule.streaming)] = max(position - rule.local + 1, 0) // page_size
            if middle is not None:
                middle[list(rule.streaming)] = PAD
        return Selection(position, middle, first_recent)

    def _choose_pages(self, rows: SequenceRows, choice: PageSelection, row: int, end: int) -> Tensor:
        """int32 [Hkv, k]: the best pages between the sinks and the recent window, which begins at page ``end``."""
        if end * self.model.page_size > rows.context_len:
            raise PolicyError(
                f"{self.policy.name}: recent={choice.recent} is shorter than the draft of {rows.num_rows} rows"
            )
        bounds = rows.page_bounds(row, end)
        if bounds is None:
            raise PolicyError(f"{self.policy.name} ranks pages, but the KV pool keeps no page statistics")
        first = -(-choice.sink // self.model.page_size)
        ends = on_device([end], torch.int64, bounds.device)
        weights = page_weights(bounds, rows.scale, rows.k.shape[1], first, ends)
        return best_pages(weights, choice.middle_pages(self.model.page_size), choice.top_p)[0]

    def _pages_of(self, selection: Selection, rule: DecodeRule, rows: SequenceRows) -> Tensor:
        """bool [Hkv, pages]."""
        page_size = self.model.page_size
        pages = torch.arange(-(-rows.length // page_size), device=rows.q.device)
        sinks = torch.full_like(selection.first_recent, -(-rule.selection.sink // page_size) if rule.selection else 0)
        if rule.streaming:
            sinks[list(rule.streaming)] = -(-rule.sink // page_size)
        visited = (pages >= selection.first_recent[:, None]) | (pages < sinks[:, None])
        if selection.middle is not None:
            spill = torch.nn.functional.pad(visited, (0, 1))
            spill.scatter_(-1, selection.middle.long().masked_fill(selection.middle == PAD, len(pages)), True)
            visited = spill[:, :-1]
        if rows.window:
            visited = visited & ((pages + 1) * page_size > selection.position - rows.window + 1)
        return visited

    # --- statistics ------------------------------------------------------------------------------------------

    def _count(self, stats: PlanStats, index: BlockIndex | None, grid: Grid, began: float) -> None:
        if index is not None:
            heads = self.model.num_kv_heads / index.num_heads
            causal = _number(index.causal_counts.sum()) * self.model.num_kv_heads
            stats.add(_number(index.counts.sum()) * heads, causal)
        else:
            blocks = _number((grid.last // self.model.page_size + 1).sum()) * self.model.num_kv_heads
            stats.add(blocks, blocks)
        stats.index_seconds += time.perf_counter() - began


def _number(count: Tensor) -> float | Tensor:
    """A count as a number, but on a GPU, where it would have to be waited for."""
    return count if count.is_cuda else float(count)


def source_row(row: int, start: int, positions: list[int], tree_mask: Tensor | None) -> int | None:
    """The row at position ``start`` among the row and its ancestors; None where it came in an earlier forward."""
    if start < positions[0]:
        return None
    if tree_mask is None:
        return start - positions[0]
    return next(j for j in range(row, -1, -1) if positions[j] == start and bool(tree_mask[row, j]))


def _unless_full(index: BlockIndex) -> BlockIndex | None:
    """None for an index that visits everything: the dense kernel need not look blocks up. A GPU is not waited for."""
    if index.counts.is_cuda or int(index.counts.sum()) < int(index.causal_counts.sum()) * index.num_heads:
        return index
    return None


def _per_kv_head(visited: Tensor, patterns: Sequence[Pattern], num_kv_heads: int) -> Tensor:
    """Drop to one row a KV head where the patterns give all query heads of a group the same blocks."""
    if visited.shape[0] == num_kv_heads or not all(p.grouped for p in patterns):
        return visited
    group = visited.shape[0] // num_kv_heads
    if any(len(set(patterns[i : i + group])) > 1 for i in range(0, len(patterns), group)):
        return visited
    return visited[::group]
