"""Page selection of decode for all sequences of a batch at once, on the device.

`PolicyState.plan_decode` plans one sequence and reads positions and counts on the host, which on a GPU waits for the
layer before. Here the host decides from numbers that it knows anyway (positions, tree masks, contexts) which row of
which sequence selects pages and which rows share a selection; once for all layers. What is left to each layer are
tensors: score, choose, compact. The selections are those of the states, which may be planned either way in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparse_attn.blocks import PAD, BlockIndex, compact
from sparse_attn.errors import PolicyError
from sparse_attn.host_values import host_list, on_device, to_device
from sparse_attn.kernels.operands import Rows
from sparse_attn.kv.head_layout import query_heads
from sparse_attn.kv.page_stats import PageStats
from sparse_attn.plan.policy import DecodeRule, PageSelection
from sparse_attn.plan.select import best_pages, page_weights
from sparse_attn.plan.state import PolicyState, Selection, source_row
from sparse_attn.tree_masks import TreeMasks

if TYPE_CHECKING:
    from sparse_attn.batch import AttnBatch


@dataclass(frozen=True)
class Choice:
    """A row of the batch that selects pages for its sequence.

    Attributes:
        row, local: its number in the batch and in its sequence.
        position: as of which it selects.
        late: whether for want of the interval's own selection.
    """

    sequence: int
    row: int
    local: int
    position: int
    late: bool


@dataclass(frozen=True)
class Run:
    """Consecutive rows that use one selection.

    Attributes:
        rows: how many.
        choice: number of the forward's choice; None for the selection that the sequence had before.
    """

    sequence: int
    rows: int
    choice: int | None


@dataclass(frozen=True)
class _Plan:
    """What one rule means for this forward: the host's part, and its tensors on the device.

    Attributes:
        rows, ends: of the choices: int64 [R], and int64 [R], the first page of the recent window.
        tables: of each head group int32 [R, P], the page tables of the choices' sequences.
        first_recent: int64 [R, Hkv]. gated: bool [R, 1, 1], choices that see everything.
        sinks: int64 [Hkv], pages at the beginning that all see. streaming: bool [Hkv, 1], the rule's streaming heads.
        cu_rows, block_seq: of the runs, as a `BlockIndex` has them. last_block: int64 [runs], the last page of each.
        width: most pages that a run visits.
    """

    choices: list[Choice]
    runs: list[Run]
    rows: Tensor
    tables: list[Tensor]
    ends: Tensor
    first_recent: Tensor
    gated: Tensor
    sinks: Tensor
    streaming: Tensor
    cu_rows: Tensor
    block_seq: Tensor
    last_block: Tensor
    width: int


@dataclass(frozen=True)
class _Facts:
    """What is the same in every layer of a forward.

    Attributes:
        states: of the sequences that have a policy.
        lengths: tokens of each of these with its new ones.
        blocks: key blocks times heads of its new rows, each seeing everything.
        decoding: all of them are past their prompts.
        alike: every sequence has a policy, and all the same.
        skips: one of them leaves out tiles (`PolicyState.skips_in_decode`).
    """

    states: list[PolicyState]
    lengths: list[int]
    blocks: list[int]
    decoding: bool
    alike: bool
    skips: bool

    @classmethod
    def of(cls, attn: AttnBatch) -> _Facts:
        """Of this batch, made once."""
        if cls not in attn.kept:
            attn.kept[cls] = cls._found(attn)
        facts: _Facts = attn.kept[cls]
        return facts

    @classmethod
    def _found(cls, attn: AttnBatch) -> _Facts:
        policies = attn.policies or ()
        own = [(s, state) for s, state in enumerate(policies) if state is not None]
        states = [state for _, state in own]
        ends = [attn.lengths[s] + attn.bounds[s + 1] - attn.bounds[s] for s, _ in own]
        blocks = [
            sum(position // attn.pool.page_size + 1 for position in range(attn.lengths[s], end))
            * state.model.num_kv_heads
            for (s, state), end in zip(own, ends, strict=True)
        ]
        decoding = all(attn.lengths[s] >= state.prompt_len for s, state in own)
        alike = len(states) == len(policies) and all(state.policy == states[0].policy for state in states)
        skips = any(state.skips_in_decode for state in states)
        return cls(states, ends, blocks, decoding, alike, skips)


def can_plan(attn: AttnBatch, layer: int, window: int) -> bool:
    """Whether every sequence decodes sparsely in this layer, all by one policy."""
    facts = _Facts.of(attn)
    if not facts.states or not facts.alike or not facts.decoding or facts.skips:
        return False
    return not any(state.sees_all(layer, n, window) for state, n in zip(facts.states, facts.lengths, strict=True))


def all_dense(attn: AttnBatch, layer: int, window: int) -> bool:
    """Whether every sequence decodes and sees everything; counts it in the states' statistics."""
    facts = _Facts.of(attn)
    if not facts.decoding or facts.skips:
        return False
    if not all(state.sees_all(layer, n, window) for state, n in zip(facts.states, facts.lengths, strict=True)):
        return False
    for state, blocks in zip(facts.states, facts.blocks, strict=True):
        state.decode_stats.add(blocks, blocks)
    return True


def plan_decode(attn: AttnBatch, layer: int, rows: Rows) -> BlockIndex:
    """The index of a layer over all sequences. Only where `can_plan`.

    Raises:
        PolicyError: as `PolicyState.plan`.
    """
    states = _Facts.of(attn).states
    rule = states[0].rules[layer]
    assert rule is not None
    num_kv_heads = rows.k.shape[1]
    late = tuple(wants_late(state, layer, rule, first) for state, first in zip(states, _roots(attn), strict=True))
    plan: _Plan | None = attn.kept.get((rule, late))
    if plan is None:
        plan = attn.kept[rule, late] = _prepare(attn, states, rule, late, num_kv_heads)
    middle = _choose(attn, layer, rows, plan, rule, states[0].policy.name)
    remember(plan.choices, dict(enumerate(states)), layer, middle, plan.first_recent)
    index = _index(attn, plan, rule, states, layer, middle, rows.window)
    _count(attn, plan, states, layer, index)
    return index


def _roots(attn: AttnBatch) -> list[int]:
    """Position of each sequence's first row."""
    return [attn.host_positions[first] for first in attn.bounds[:-1]]


def wants_late(state: PolicyState, layer: int, rule: DecodeRule, root: int) -> bool:
    """Whether the interval that the root is in has no selection, as after a resumption."""
    start = state.interval_start(root, rule)
    held = state.selected.get(layer)
    return start != root and (held is None or held.position != start)


def _prepare(
    attn: AttnBatch, states: list[PolicyState], rule: DecodeRule, late: tuple[bool, ...], num_kv_heads: int
) -> _Plan:
    """The host's part, for all layers of one rule."""
    bounds, positions = attn.bounds, attn.host_positions
    choices: list[Choice] = []
    runs: list[Run] = []
    for s, state in enumerate(states):
        own = positions[bounds[s] : bounds[s + 1]]
        add_choices(choices, runs, s, bounds[s], state, rule, own, _host_mask(attn, s), late[s])
    return _place(attn, states, rule, choices, runs, num_kv_heads)


def add_choices(
    choices: list[Choice],
    runs: list[Run],
    s: int,
    first_row: int,
    state: PolicyState,
    rule: DecodeRule,
    positions: list[int],
    mask: Tensor | None,
    late: bool,
) -> None:
    """Add which rows of a sequence select pages, and which of its rows share a selection."""
    sources = [source_row(i, state.interval_start(p, rule), positions, mask) for i, p in enumerate(positions)]
    made: dict[int | None, int | None] = {None: None}
    for local in sorted({i for i in sources if i is not None}):
        made[local] = len(choices)
        choices.append(Choice(s, first_row + local, local, positions[local], late=False))
    if late:
        made[None] = len(choices)
        choices.append(Choice(s, first_row, 0, state.interval_start(positions[0], rule), late=True))
    for source in sources:
        if runs and runs[-1].sequence == s and runs[-1].choice == made[source]:
            runs[-1] = Run(s, runs[-1].rows + 1, made[source])
        else:
            runs.append(Run(s, 1, made[source]))


def _host_mask(attn: AttnBatch, s: int) -> Tensor | None:
    masks = attn.tree_masks
    if isinstance(masks, TreeMasks):
        masks = masks.host
    return masks[s] if masks is not None else None


def _place(
    attn: AttnBatch,
    states: list[PolicyState],
    rule: DecodeRule,
    choices: list[Choice],
    runs: list[Run],
    num_kv_heads: int,
) -> _Plan:
    device, gate = attn.cu_seqlens.device, states[0].policy.decode_gate
    contexts, page_size = attn.lengths, attn.pool.page_size
    recent = rule.selection.recent if rule.selection is not None else 0
    ends = [max(c.position - recent + 1, 0) // page_size if rule.selection else 0 for c in choices]
    for choice, end in zip(choices, ends, strict=True):
        if rule.selection is not None and choice.position >= gate and end * page_size > contexts[choice.sequence]:
            raise PolicyError(f"{states[0].policy.name}: recent={recent} is shorter than the draft")
    first_recent = torch.tensor(ends, dtype=torch.int64)[:, None].repeat(1, num_kv_heads)
    gated = torch.tensor([c.position < gate for c in choices], dtype=torch.bool)
    for i, choice in enumerate(choices):
        if rule.streaming:
            first_recent[i, list(rule.streaming)] = max(choice.position - rule.local + 1, 0) // page_size
    first_recent[gated] = 0
    sinks = torch.full((num_kv_heads,), -(-rule.selection.sink // page_size) if rule.selection else 0)
    streaming = torch.zeros(num_kv_heads, 1, dtype=torch.bool)
    streaming[list(rule.streaming)] = True
    sinks[streaming[:, 0]] = -(-rule.sink // page_size)
    cu_rows, last_block, within = [0], [], 0
    for i, run in enumerate(runs):
        within = run.rows + (within if i and runs[i - 1].sequence == run.sequence else 0)
        cu_rows.append(cu_rows[-1] + run.rows)
        last_block.append((contexts[run.sequence] + within - 1) // page_size)
    sequences = on_device([c.sequence for c in choices], torch.int64, device)
    return _Plan(
        choices,
        runs,
        on_device([c.row for c in choices], torch.int64, device),
        [own.block_tables.index_select(0, sequences) for own in attn.tables],
        on_device(ends, torch.int64, device),
        to_device(first_recent, device),
        to_device(gated[:, None, None], device),
        to_device(sinks, device),
        to_device(streaming, device),
        on_device(cu_rows, torch.int32, device),
        on_device([run.sequence for run in runs], torch.int32, device),
        on_device(last_block, torch.int64, device),
        max(last_block) + 1,
    )


def _choose(attn: AttnBatch, layer: int, rows: Rows, plan: _Plan, rule: DecodeRule, name: str) -> Tensor | None:
    """int32 [R, Hkv, k]: the pages that each choice takes between sinks and recent window; None where none does."""
    selection, num_kv_heads = rule.selection, rows.k.shape[1]
    if selection is None or len(rule.streaming) == num_kv_heads or not plan.choices:
        return None
    q, page_size = rows.q.index_select(0, plan.rows), attn.pool.page_size
    bounds = q.new_empty(*q.shape[:2], attn.tables[0].block_tables.shape[1], dtype=torch.float32)
    for group, tables in zip(attn.pool.groups, plan.tables, strict=True):
        if group.stats is None:
            raise PolicyError(f"{name} ranks pages, but the KV pool keeps no page statistics")
        heads = query_heads(group.heads[layer], q.shape[1] // num_kv_heads)
        if len(heads) == q.shape[1]:
            bounds = _bounds(group.stats, layer, q, tables, plan.ends)
        elif heads:
            bounds[:, heads] = _bounds(group.stats, layer, q[:, heads], tables, plan.ends)
    weights = page_weights(bounds, rows.scale, num_kv_heads, -(-selection.sink // page_size), plan.ends)
    middle = best_pages(weights, selection.middle_pages(page_size), selection.top_p)
    return middle.masked_fill(plan.gated | plan.streaming, PAD)


def _bounds(stats: PageStats, layer: int, q: Tensor, tables: Tensor, ends: Tensor) -> Tensor:
    """Upper bounds float32 [R, Hq, P] of q·k over the pages before each choice's recent window, -inf beyond."""
    if q.is_cuda:
        from sparse_attn.kernels.triton import page_stats as triton_stats

        return triton_stats.page_bounds(q, stats.kmin[layer], stats.kmax[layer], tables, ends.int())
    bounds = q.new_full((*q.shape[:2], tables.shape[1]), -torch.inf, dtype=torch.float32)
    for i, end in enumerate(host_list(ends)):
        if end:
            bounds[i, :, :end] = stats.bounds(layer, q[i : i + 1], tables[i, :end])[0]
    return bounds


def remember(
    choices: Sequence[Choice],
    states: Mapping[int, PolicyState],
    layer: int,
    middle: Tensor | None,
    first_recent: Tensor,
) -> None:
    """Give the states of sequences the selections of their rows in a layer, as `PolicyState.plan_decode` keeps them.

    By choice: middle int32 [R, Hkv, k], first_recent int64 [R, Hkv].
    """
    for state in states.values():
        state.pending[layer] = {}
    for i, choice in enumerate(choices):
        state = states[choice.sequence]
        made = Selection(choice.position, None if middle is None else middle[i], first_recent[i])
        if choice.late:
            state.decode_stats.late_selections += 1
        else:
            state.pending[layer][choice.local] = made
        if choice.late or choice.local == 0:
            state.selected[layer] = made


def _index(
    attn: AttnBatch,
    plan: _Plan,
    rule: DecodeRule,
    states: list[PolicyState],
    layer: int,
    middle: Tensor | None,
    window: int,
) -> BlockIndex:
    used = [_used(run, plan, states, layer, middle) for run in plan.runs]
    device, page_size = attn.cu_seqlens.device, attn.pool.page_size
    pages = torch.arange(plan.width, device=device)
    first_recent = torch.stack([s.first_recent for s in used])  # [runs, Hkv]
    visited = (pages >= first_recent[..., None]) | (pages < plan.sinks[:, None])
    if rule.selection is not None:
        chosen = _stacked([s.middle for s in used], first_recent.shape[1], rule.selection, page_size, device)
        outside = (chosen == PAD) | (chosen >= plan.width)
        spill = torch.nn.functional.pad(visited, (0, 1))
        visited = spill.scatter_(-1, chosen.long().masked_fill(outside, plan.width), True)[..., :-1]
    if window:
        positions = on_device([s.position for s in used], torch.int64, device)
        visited = visited & ((pages + 1) * page_size > (positions - window + 1)[:, None, None])
    counts, ids = compact(visited.transpose(0, 1), plan.last_block, plan.width if device.type == "cuda" else None)
    return BlockIndex(
        counts,
        ids,
        plan.cu_rows,
        plan.block_seq,
        attn.context_lens,
        torch.zeros_like(attn.context_lens),
        max(run.rows for run in plan.runs),
        page_size,
    )


def _used(run: Run, plan: _Plan, states: list[PolicyState], layer: int, middle: Tensor | None) -> Selection:
    if run.choice is None:
        return states[run.sequence].selected[layer]
    choice = plan.choices[run.choice]
    return Selection(choice.position, None if middle is None else middle[run.choice], plan.first_recent[run.choice])


def _stacked(
    middles: Sequence[Tensor | None], num_heads: int, selection: PageSelection, page_size: int, device: torch.device
) -> Tensor:
    """int32 [runs, Hkv, k] from selections that may be narrower, or none."""
    width = max(selection.middle_pages(page_size), 1)
    nothing = torch.full((num_heads, width), PAD, dtype=torch.int32, device=device)
    parts = [nothing if m is None else torch.nn.functional.pad(m, (0, width - m.shape[-1]), value=PAD) for m in middles]
    return torch.stack(parts)


def _count(attn: AttnBatch, plan: _Plan, states: list[PolicyState], layer: int, index: BlockIndex) -> None:
    """Add up visited blocks by sequence, on the device; the states get the sums after the last layer."""
    sums: Tensor | None = attn.kept.get("visited")
    if sums is None:
        sums = attn.kept["visited"] = torch.zeros(len(states), device=index.counts.device)
        attn.kept["causal"] = [0.0] * len(states)
    heads = states[0].model.num_kv_heads / index.num_heads
    sums.index_add_(0, plan.block_seq.long(), index.counts.sum(0).float() * heads)
    contexts = attn.lengths
    within = [0] * len(states)
    for run in plan.runs:
        within[run.sequence] += run.rows
        last = (contexts[run.sequence] + within[run.sequence] - 1) // attn.pool.page_size
        attn.kept["causal"][run.sequence] += (last + 1) * states[0].model.num_kv_heads
    if layer == states[0].model.num_layers - 1:
        for s, state in enumerate(states):
            state.decode_stats.add(sums[s], attn.kept["causal"][s])
