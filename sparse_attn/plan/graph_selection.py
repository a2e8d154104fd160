"""Page selection within a captured step: its shapes and addresses stay, its contents are the step's.

What `decode_plan` does with tensors made for each step, in buffers that a CUDA graph reads: the host writes which rows
select as of where, which rows share a selection and how attention is cut, once a step; each layer scores, chooses and
lists pages on the device. The selections are those of the `PolicyState`s, which may be planned either way in turn. A
sequence that sees everything has a list of all its pages, so it may decode beside sparse ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from sparse_attn.blocks import PAD
from sparse_attn.errors import PolicyError
from sparse_attn.host_values import to_device
from sparse_attn.kernels.operands import Pages, Rows
from sparse_attn.kernels.work import FIELDS, LISTED_FIELDS, OF_EARLIER, OF_NOBODY, Launch, Tiling
from sparse_attn.kv.page_stats import PageStats
from sparse_attn.plan.decode_plan import Choice, Run, add_choices, remember, wants_late
from sparse_attn.plan.policy import DecodeRule, ModelShape, Policy
from sparse_attn.plan.state import PolicyState
from sparse_attn.tree_masks import TreeMasks

Buffer = Callable[[str, tuple[int, ...], torch.dtype], None]
"""Makes a buffer of that name, shape and dtype which the host fills and the device reads."""


@dataclass(frozen=True)
class GraphRule:
    """What a policy's sparse layers visit in decode, where that is one rule but for the heads that stream.

    Attributes:
        rule: of every sparse layer, without heads.
        streaming: by sparse layer, the heads that do.
        gate: the policy's `decode_gate`.
        policy, model: whose it is.
    """

    rule: DecodeRule
    streaming: Mapping[int, tuple[int, ...]]
    gate: int
    model: ModelShape
    policy: Policy = field(compare=False)

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of(cls, policy: Policy, model: ModelShape) -> GraphRule | None:
        """None where no layer is sparse in decode, or layers differ in more than their heads."""
        rules = {n: rule for n in range(model.num_layers) if (rule := policy.decode(n, model)) is not None}
        alike = {replace(rule, streaming=()) for rule in rules.values()}
        if len(alike) != 1 or policy.skips(prefill=False)[0]:
            return None
        streaming = {n: rule.streaming for n, rule in rules.items()}
        return cls(alike.pop(), streaming, policy.decode_gate, model, policy)

    def holds(self, state: PolicyState) -> bool:
        """Whether a sequence's policy decodes by it."""
        return GraphRule.of(state.policy, state.model) == self

    def state(self, prompt_len: int) -> PolicyState:
        """Of a sequence that decodes by it."""
        return PolicyState(self.policy, self.model, prompt_len)

    @property
    def kv_heads(self) -> int:
        return self.model.num_kv_heads

    @property
    def page_size(self) -> int:
        return self.model.page_size

    @property
    def sinks(self) -> tuple[int, int]:
        """First pages that selecting heads and streaming heads see."""
        selection = self.rule.selection
        return -(-selection.sink // self.page_size) if selection else 0, -(-self.rule.sink // self.page_size)

    @property
    def most(self) -> int:
        """Pages that are chosen at most."""
        return max(1, self.rule.selection.middle_pages(self.page_size)) if self.rule.selection else 1

    def recent(self, position: int) -> tuple[int, int]:
        """From which page on selecting and streaming heads see everything by a selection as of ``position``."""
        if position < self.gate:
            return 0, 0
        selection = self.rule.selection
        own = max(position - selection.recent + 1, 0) // self.page_size if selection else 0
        streams = any(self.streaming.values())
        return own, max(position - self.rule.local + 1, 0) // self.page_size if streams else 0

    def most_seen(self, end: int, recent: tuple[int, int]) -> int:
        """Most pages of the first ``end`` that a head can visit."""
        own = self.sinks[0] + self.most + end - recent[0] if recent[0] else end
        streams = self.sinks[1] + end - recent[1] if any(self.streaming.values()) else 0
        return min(end, max(own, streams))


@dataclass(frozen=True)
class DecodedRows:
    """The rows of one sequence of a step.

    Attributes:
        context: tokens in pages before them. positions: of each row.
        mask: bool [n, n], ancestor or self; None for one row.
        tree: where that mask begins among all masks; -1 for causal.
        state: of its policy; None where it sees everything.
    """

    context: int
    positions: list[int]
    mask: Tensor | None
    tree: int
    state: PolicyState | None


@dataclass
class _Step:
    """The step in the buffers."""

    rows: Sequence[DecodedRows] = ()
    states: dict[int, PolicyState] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


class GraphSelection:
    """The selection of pages in one captured step.

    Args:
        tables: int32 [S, P], the page tables; context_lens: int32 [S]: buffers of the step.
        host, own: the step's buffers on the host and on the device, by the names that ``buffer`` is given.
    """

    def __init__(
        self,
        rule: GraphRule,
        rows: int,
        tiling: Tiling,
        tables: Tensor,
        context_lens: Tensor,
        buffer: Buffer,
        host: dict[str, Tensor],
        own: dict[str, Tensor],
    ) -> None:
        self.rule, self._tiling, self._tables, self._context_lens = rule, tiling, tables, context_lens
        self._host, self._own = host, own
        pages, device, heads = tables.shape[1], tables.device, rule.kv_heads
        self._layers = {layer: i for i, layer in enumerate(rule.streaming)}
        items = tiling.most_items(rows, rows, pages)  # a run is at least a row
        buffer("ends", (rows,), torch.int32)
        buffer("row_sequences", (rows,), torch.int64)
        buffer("runs", (rows, len(LISTED_FIELDS)), torch.int32)
        buffer("listed_items", (items, len(FIELDS)), torch.int32)
        buffer("listed_joins", (rows, 3), torch.int32)
        parts = tiling.most_parts(rows, rows, pages)
        self._launch = Launch(tiling, own["listed_items"], own["listed_joins"], parts)

        def ints(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        layers = len(self._layers)
        streams = torch.zeros(layers, heads, dtype=torch.int32)
        for i, streaming in enumerate(rule.streaming.values()):
            streams[i, list(streaming)] = 1
        self._streams = streams.to(device)
        self._row_tables = ints(rows, pages)
        self._chosen = ints(layers, rows, heads, rule.most).fill_(PAD)
        self._kept = ints(layers, len(tables), heads, rule.most).fill_(PAD)
        self._lists, self._contexts = ints(rows, heads, pages), ints(rows, heads)
        self._visited = ints(layers, rows, heads)
        self._kept_of: list[object] = [None] * len(tables)
        self._step = _Step()

    # --- within the graph ------------------------------------------------------------------------------------

    def selects(self, layer: int, window: int) -> bool:
        """Whether a layer of this window is sparse.

        Raises:
            RuntimeError: it is, and its own window hides pages that would be listed.
        """
        selection = self.rule.rule.selection
        if layer not in self._layers or (selection is not None and 0 < window <= selection.budget):
            return False
        if window:
            raise RuntimeError(f"layer {layer} has a window of {window} tokens, which lists of pages do not know")
        return True

    def attend(self, layer: int, pages: Pages, stats: PageStats | None, rows: Rows) -> Tensor:
        """The rows of a sparse layer over the pages that they visit: [T, Hq, D].

        Raises:
            PolicyError: pages are ranked, and the pool keeps no statistics of them.
        """
        from sparse_attn.kernels.triton import in_pages, selection
        from sparse_attn.kernels.triton.page_stats import page_bounds

        i, own, rule = self._layers[layer], self._own, self.rule.rule
        if rule.selection is not None:
            if stats is None:
                raise PolicyError("a policy ranks pages, but the KV pool keeps no page statistics")
            if i == 0:
                torch.index_select(self._tables, 0, own["row_sequences"], out=self._row_tables)
            bounds = page_bounds(rows.q, stats.kmin[layer], stats.kmax[layer], self._row_tables, own["ends"])
            selection.choose_pages(
                *(bounds, own["ends"], self._streams[i], self._chosen[i], rows.scale, self.rule.sinks[0]),
                rule.selection.top_p,
            )
        selection.list_pages(
            *(own["runs"], self._chosen[i], self._kept[i], self._streams[i], self._tables, self._context_lens),
            (self._lists, self._contexts, self._visited[i]),
            *(self.rule.sinks, self.rule.page_size),
        )
        listed = replace(pages, block_tables=self._lists.flatten(0, 1))
        masks = rows.tree_masks
        assert masks is None or isinstance(masks, TreeMasks)
        return in_pages.attend(listed, rows, masks, self._launch, self._contexts)

    # --- before and behind a replay --------------------------------------------------------------------------

    def fill(self, rows: Sequence[DecodedRows]) -> None:
        """Put a step into the host's buffers, and what its sequences chose before into the device's.

        Raises:
            PolicyError: as `PolicyState.plan`.
        """
        step = _Step(rows, {s: own.state for s, own in enumerate(rows) if own.state is not None})
        first = next(iter(self._layers))
        starts = np.cumsum([0, *(len(own.positions) for own in rows)]).tolist()
        for s, own in enumerate(rows):
            if own.state is None:
                step.runs.append(Run(s, len(own.positions), None))
                continue
            rule = own.state.rules[first]
            assert rule is not None
            late = wants_late(own.state, first, rule, own.positions[0])
            add_choices(step.choices, step.runs, s, starts[s], own.state, rule, own.positions, own.mask, late)
            if any(run.choice is None for run in step.runs if run.sequence == s):
                self._keep(s, own.state)
        self._step = step
        self._write(starts)

    def _keep(self, s: int, state: PolicyState) -> None:
        """Put what a sequence chose in an earlier step beside the choices of this one; most steps find it there."""
        first = next(iter(self._layers))
        if self._kept_of[s] is state.selected[first]:
            return
        nothing = self._kept.new_full((self.rule.kv_heads, self.rule.most), PAD)
        middles = [state.selected[layer].middle for layer in self._layers]
        wide = [
            nothing if m is None else torch.nn.functional.pad(m, (0, self.rule.most - m.shape[1]), value=PAD)
            for m in middles
        ]
        self._kept[:, s] = torch.stack(wide)
        self._kept_of[s] = state.selected[first]

    def _write(self, starts: list[int]) -> None:
        step, host, page_size = self._step, self._host, self.rule.page_size
        ends, of_rows, runs = (host[name].numpy() for name in ("ends", "row_sequences", "runs"))
        ends[:], of_rows[:], runs[:] = -1, 0, 0
        for choice in step.choices:
            end = self.rule.recent(choice.position)[0]
            if end * page_size > step.rows[choice.sequence].context:
                raise PolicyError("the recent window of the attention policy is shorter than the draft")
            ends[choice.row] = end
        first = next(iter(self._layers))
        bounds, contexts, locals_ = [0], [], []
        for i, run in enumerate(step.runs):
            own = step.rows[run.sequence]
            local = bounds[-1] - starts[run.sequence]
            of_rows[bounds[-1] : bounds[-1] + run.rows] = run.sequence
            source, recent = OF_NOBODY, (0, 0)
            if run.choice is not None:
                source, recent = step.choices[run.choice].row, self.rule.recent(step.choices[run.choice].position)
            elif own.state is not None:
                source, recent = OF_EARLIER, self.rule.recent(own.state.selected[first].position)
            end = (own.context + local + run.rows - 1) // page_size + 1
            recent = min(recent[0], own.context // page_size), min(recent[1], own.context // page_size)
            runs[i] = run.sequence, source, end, *recent  # a list ends with the pages of all new rows
            bounds.append(bounds[-1] + run.rows)
            contexts.append(self.rule.most_seen(end, recent) * page_size - run.rows)
            locals_.append(local)
            step.ends.append(end)
        trees = [step.rows[run.sequence].tree for run in step.runs]
        work = self._tiling.plan(bounds, contexts, trees)
        items = work.items
        run_of = items[:, FIELDS.index("sequence")]
        items[:, FIELDS.index("local")] += np.array(locals_, dtype=np.int32)[run_of]
        lengths = [len(step.rows[run.sequence].positions) for run in step.runs]
        items[:, FIELDS.index("length")] = np.array(lengths, dtype=np.int32)[run_of]
        listed, joins = host["listed_items"].numpy(), host["listed_joins"].numpy()
        listed[: len(items)], listed[len(items) :] = items, 0
        joins[: bounds[-1]], joins[bounds[-1] :] = work.joins, 0

    def remember(self) -> None:
        """Give the states what the replayed step chose and visited."""
        step, rule = self._step, self.rule
        if step.choices and rule.rule.interval > 1:  # else nobody asks for an earlier selection
            rows = [choice.row for choice in step.choices]
            device = self._chosen.device
            chosen = self._chosen[:, to_device(torch.tensor(rows), device)]
            recents = np.array([rule.recent(choice.position) for choice in step.choices])
            for layer, i in self._layers.items():
                streams = np.isin(np.arange(rule.kv_heads), rule.streaming[layer]).astype(np.int64)
                first_recent = to_device(torch.from_numpy(recents[:, streams]), device)
                remember(step.choices, step.states, layer, chosen[i], first_recent)
        if not step.states:
            return
        visited = self._visited[:, : len(step.runs)].sum((0, 2))
        seen = visited.new_zeros(len(step.rows)).index_add_(0, self._own["runs"][: len(step.runs), 0], visited)
        layers, dense = len(self._layers), rule.model.num_layers - len(self._layers)
        for s, state in step.states.items():
            own = step.rows[s]
            every = sum(end for run, end in zip(step.runs, step.ends, strict=True) if run.sequence == s)
            whole = sum((own.context + i) // rule.page_size + 1 for i in range(len(own.positions)))  # a dense layer's
            causal = (layers * every + dense * whole) * rule.kv_heads
            state.decode_stats.add(seen[s] + dense * whole * rule.kv_heads, causal)
