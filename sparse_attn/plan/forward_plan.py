"""Which keys each row of a forward visits in a layer: the first of attention's three acts.

A forward is cut into parts that one call of a kernel serves: all rows together where they are dense or planned on the
device, each sequence apart where its own policy plans it. In the last layer only the rows that somebody reads are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sparse_attn.batch import AttnBatch
from sparse_attn.blocks import BlockIndex
from sparse_attn.kernels.operands import Rows
from sparse_attn.kernels.work import PREFILL_ROWS
from sparse_attn.plan.decode_plan import all_dense, can_plan, plan_decode
from sparse_attn.plan.state import PolicyState
from sparse_attn.rows import HeadPages, SequenceRows

EVERY = slice(None)


@dataclass(slots=True)
class Part:
    """Rows of a forward that attend together.

    Attributes:
        batch: these rows alone.
        at: which rows of the forward they are: a slice, or int64 [n].
        rows: their q, k and v.
        index: what they visit; None for every key.
    """

    batch: AttnBatch
    at: slice | Tensor
    rows: Rows
    index: BlockIndex | None

    def last_rows(self, counts: Sequence[int]) -> Part:
        """The last ``counts[s]`` rows of each sequence; of the only one, where there is an index."""
        batch, own = self.batch.last_rows(counts)
        first = self.at.start or 0 if isinstance(self.at, slice) else 0
        index = self.index.last_rows(counts[0]) if self.index is not None else None
        return Part(batch, own + first, batch.take(self.rows, own), index)


def plan_forward(attn: AttnBatch, layer: int, rows: Rows) -> list[Part]:
    """The parts of a forward whose output is read.

    The keys and values of ``rows`` must be in pages already.

    Raises:
        PolicyError: as `PolicyState.plan`.
    """
    needed = attn.needed if layer == attn.pool.shape.num_layers - 1 else None
    if needed is not None and not any(needed):
        return []
    if attn.policies is None:
        if rows.q.is_cuda and needed is None and attn.earlier is None:
            return chunks_apart(attn, layer, rows)
        every = Part(attn, EVERY, rows, _present_pages(attn, layer) if attn.earlier is not None else None)
        return [every] if needed is None else [every.last_rows(needed)]
    if rows.q.is_cuda and needed is None:
        if all_dense(attn, layer, rows.window):
            return [Part(attn, EVERY, rows, None)]
        if can_plan(attn, layer, rows.window):
            return [Part(attn, EVERY, rows, plan_decode(attn, layer, rows))]
        return chunks_apart(attn, layer, rows)
    if needed is None:
        return [plan_sequence(attn, s, layer, rows) for s in range(attn.num_sequences)]
    return [plan_sequence(attn, s, layer, rows).last_rows([count]) for s, count in enumerate(needed) if count]


def chunks_apart(attn: AttnBatch, layer: int, rows: Rows) -> list[Part]:
    """Neighbouring sequences that decode and see everything together, each other one as its policy plans it.

    A prompt's chunk beside decodes would give them its tiles, whose heads read each page anew, and no splits.
    """
    if attn.decode_only:
        return [Part(attn, EVERY, rows, None)]
    parts = []
    for first, end in attn.runs(lambda s: _decodes_densely(attn, s, layer, rows.window) or -1 - s):
        if not _decodes_densely(attn, first, layer, rows.window):
            parts.append(plan_sequence(attn, first, layer, rows))
            continue
        at = slice(attn.bounds[first], attn.bounds[end])
        batch = attn.span(first, end)
        parts.append(Part(batch, at, batch.take(rows, at), None))
        for s in range(first, end):
            if (state := _state(attn, s)) is not None:
                blocks = _blocks_seen(attn, s) * state.model.num_kv_heads
                state.decode_stats.add(blocks, blocks)
    return parts


def _state(attn: AttnBatch, s: int) -> PolicyState | None:
    return attn.policies[s] if attn.policies is not None else None


def _decodes_densely(attn: AttnBatch, s: int, layer: int, window: int) -> bool:
    count, state = attn.bounds[s + 1] - attn.bounds[s], _state(attn, s)
    if state is None:
        return count < PREFILL_ROWS
    if state.skips_in_decode:
        return False
    return attn.lengths[s] >= state.prompt_len and state.sees_all(layer, attn.lengths[s] + count, window)


def _blocks_seen(attn: AttnBatch, s: int) -> int:
    """Key blocks of a KV head that the new rows of a sequence see, each of them everything before it."""
    first, count = attn.lengths[s], attn.bounds[s + 1] - attn.bounds[s]
    return sum(position // attn.pool.page_size + 1 for position in range(first, first + count))


def plan_sequence(attn: AttnBatch, s: int, layer: int, rows: Rows) -> Part:
    """The rows of one sequence, planned by its own policy."""
    one, at = attn.sequences[s], EVERY
    if one is not attn:
        at = attn.rows(s)
        rows = one.take(rows, at)
    policy = one.policies[0] if one.policies is not None else None
    index = policy.plan(_sequence_rows(one, layer, rows)) if policy is not None else None
    if policy is not None and (skip := policy.skip(one.lengths[0], rows.q.device)) is not None:
        rows = replace(rows, skip=skip)
    return Part(one, at, rows, index)


def _sequence_rows(one: AttnBatch, layer: int, rows: Rows) -> SequenceRows:
    """What a policy sees of the only sequence of a batch."""
    [context_len] = one.lengths
    groups = [
        HeadPages(group.heads[layer], group.keys[layer], tables.block_tables[0], group.key_scales(layer), group.stats)
        for group, tables in zip(one.pool.groups, one.tables, strict=True)
        if context_len and group.heads[layer]
    ]
    tree_mask = one.tree_masks[0] if one.tree_masks is not None else None
    q = rows.q.to(rows.k.dtype)
    return SequenceRows(q, rows.k, rows.scale, context_len, groups, rows.window, one.positions, tree_mask, layer)


def _present_pages(attn: AttnBatch, layer: int) -> BlockIndex | None:
    """The pages of the only context that have not been freed, for rows that no policy plans; None for all."""
    if attn.present_pages is None:
        return None
    pages = attn.present_pages[0]
    visited = pages.new_empty(attn.pool.shape.num_kv_heads, *pages.shape)
    for group, present in zip(attn.pool.groups, attn.present_pages, strict=True):
        visited[list(group.heads[layer])] = present
    return BlockIndex.of_runs(visited, [attn.bounds[1]], attn.lengths[0], block_k=attn.pool.page_size)
