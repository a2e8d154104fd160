"""One forward of the unmodified transformers model over the slices of a step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drafters.heads.head import LAST
from drafters.tree import DraftTree
from service.engine.block_manager import GONE, Place
from service.engine.outputs import TokenLogprobs
from service.engine.runner.hidden_states import logits_of, watched
from service.engine.runner.row_invariance import leading
from service.engine.sampling.sampler import token_logprobs
from service.engine.step import Slice
from sparse_attn.batch import AttnBatch, EarlierNodes, GroupTables
from sparse_attn.host_values import on_device, to_device
from sparse_attn.kv.pool import KVPool
from sparse_attn.plan.policy import ModelShape, Policy
from sparse_attn.plan.state import PolicyState
from sparse_attn.tree_masks import TreeMasks

SCORED_ROWS = 64
"""Rows of a prompt whose logits are held at once: a vocabulary is a thousand times a token."""


@dataclass
class Forward:
    """What a forward gave.

    Attributes:
        logits: [R, V], for each sampling slice the row of its last token (of all its tokens where it asks for
            that) and then one per tree node.
        first_row: per slice, where its rows begin in ``logits``; -1 for a slice that does not sample.
        kernels: names of the attention kernels that served it.
        hidden: by request id, the hidden states [hidden_rows, d] of the last rows of the slices that ask for them.
        states: by request id, those [state_rows, layers, d] of the layers that slices ask for.
        scores: by request id, the log-probabilities of the tokens that slices name as their targets.
    """

    logits: Tensor
    first_row: list[int]
    kernels: set[str]
    hidden: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)


class ModelRunner:
    """Owns the model and the pages; turns slices into tensors and back.

    ``backend``: who attends long dense runs of rows (`sparse_attn.kernels.BACKENDS`).
    """

    def __init__(self, model: torch.nn.Module, pool: KVPool, backend: str = "auto") -> None:
        self.model = model
        self.pool = pool
        self.backend = backend

    @torch.inference_mode()
    def run(self, slices: Sequence[Slice], pending: Tensor | None = None) -> Forward:
        """Run all slices in one forward; K and V of their tokens and nodes are in the pages afterwards.

        The runs of one slice see one another's keys: in each layer those of all rows are written first.

        Args:
            pending: the tokens int64 [T] on the device, of slices of one token each, in place of those they name.
        """
        runs = [part.runs for part in slices]
        last = [end - 1 for end in accumulate(map(len, runs))]
        slices = [run for own in runs for run in own]
        with self._on_its_device():
            batch, token_ids, wanted, every_first = self._build(slices)
            token_ids = token_ids if pending is None else pending
            first_row = [every_first[i] for i in last]
            decoded = takewhile(lambda part: part.samples and len(part.token_ids) == 1, slices)
            with leading(sum(part.num_rows for part in decoded)):
                # what is appended may have embeddings that are younger than a captured forward
                if not any(part.hidden_rows or part.state_rows or part.appended is not None for part in slices):
                    logits = self._unwatched(batch, token_ids, wanted)
                    return Forward(logits, first_row, batch.kernels)
                with watched(self.model, {layer for part in slices for layer in part.layers}) as seen:
                    logits = self._forward(batch, token_ids, wanted)
            ends = list(zip(slices, accumulate(part.num_rows for part in slices), strict=True))
            hidden = {
                part.request.id: seen.states[LAST][end - part.hidden_rows : end]
                for part, end in ends
                if part.hidden_rows
            }
            scores = {part.request.id: self._scores(part, hidden[part.request.id]) for part in slices if part.targets}
            states = {
                part.request.id: seen.of(part.layers, slice(end - part.state_rows, end))
                for part, end in ends
                if part.state_rows
            }
        return Forward(logits, first_row, batch.kernels, hidden, scores, states)

    def figures(self) -> dict[str, Any]:
        """How the forwards ran, for the statistics of the engine."""
        return {}

    def keep_stats(self) -> None:
        """Keep the bounds of every page's keys from now on (`KVPool.keep_stats`)."""
        self.pool.keep_stats()

    def policy_state(self, policy: Policy, model: ModelShape, prompt_len: int) -> PolicyState:
        """The state of a policy with one sequence, over the heads that this runner has."""
        return PolicyState(policy, model, prompt_len)

    @torch.inference_mode()
    def run_nodes(self, pages: Sequence[Place], length: int, tree: DraftTree, known: int) -> Tensor:
        """Run the nodes ``known:`` of a tree that grows behind ``length`` tokens in pages; the earlier ones lie there.

        Node i is kept at order ``length + i``; a parent of -1 is the last of the tokens in pages.

        Returns:
            Logits [len(tree) - known, V].
        """
        batch, token_ids = self._grown(pages, length, tree, known)
        with self._on_its_device():
            return self._unwatched(batch, token_ids, list(range(len(token_ids))))

    @torch.inference_mode()
    def states_of_nodes(self, pages: Sequence[Place], length: int, tree: DraftTree, known: int, layer: int) -> Tensor:
        """As ``run_nodes``, without the logits: what goes into a layer, [len(tree) - known, d]."""
        batch, token_ids = self._grown(pages, length, tree, known)
        with self._on_its_device(), watched(self.model, [layer]) as seen:
            positions = batch.positions[None]
            body: Any = self.model.base_model
            body(input_ids=token_ids[None], position_ids=positions, use_cache=False, attn=batch)
        return seen.states[layer]

    def _grown(self, pages: Sequence[Place], length: int, tree: DraftTree, known: int) -> tuple[AttnBatch, Tensor]:
        """The batch and the token ids of the nodes ``known:``."""
        if known and tree.ancestor_mask[1 + known :, 1 : 1 + known].all():
            # one chain that all go on from: no different from tokens
            return self._grown(pages, length + known, _below(tree, known), 0)
        device, count = self.pool.device, len(tree) - known
        place = to_device(torch.from_numpy(length - 1 + tree.depths[1:]), device)
        every = np.arange(length, length + len(tree))
        slots = [self._slots(pages, every, group) for group in range(self.pool.layout.num_groups)]
        mask = to_device(torch.from_numpy(tree.ancestor_mask[1 + known :, 1:]), device)
        batch = AttnBatch(
            pool=self.pool,
            cu_seqlens=on_device([0, count], torch.int32, device),
            context_lens=on_device([length], torch.int32, device),
            tables=[GroupTables(self._table([pages], group), own[known:]) for group, own in enumerate(slots)],
            positions=place[known:],
            tree_masks=[mask[:, known:]],
            earlier=EarlierNodes([own[:known] for own in slots], place[:known], mask[:, :known]) if known else None,
            backend=self.backend,
        )
        return batch, to_device(torch.from_numpy(tree.tokens[known:]), device)

    @torch.inference_mode()
    def keep_nodes(self, pages: Sequence[Place], length: int, path: Sequence[int]) -> None:
        """Copy K and V of the nodes ``path`` (kept from order ``length`` on) to where the sequence goes on."""
        source = [length + node for node in path]
        target = list(range(length, length + len(path)))
        if source == target:
            return
        with self._on_its_device():
            for group in range(self.pool.layout.num_groups):
                slots = self._slots(pages, np.array([source, target]), group)
                self.pool.copy_slots(slots[0], slots[1])

    @torch.inference_mode()
    def logits_of(self, hidden: Tensor) -> Tensor:
        """The logits [n, V] of hidden states [n, d] of a forward."""
        with self._on_its_device():
            return logits_of(self.model, hidden)

    @torch.inference_mode()
    def get_tokens(self, pages: Sequence[Place], places: range) -> tuple[Tensor, Tensor]:
        """A copy of K and V [L, T, Hkv, D] of some tokens of a sequence, by their numbers."""
        with self._on_its_device():
            return self.pool.get_tokens(self._slots_of(pages, places))

    @torch.inference_mode()
    def put_tokens(self, pages: Sequence[Place], places: range, k: Tensor, v: Tensor) -> None:
        """Write K and V [L, T, Hkv, D] of some tokens of a sequence."""
        with self._on_its_device():
            self.pool.put_tokens(self._slots_of(pages, places), k, v)

    def _slots_of(self, pages: Sequence[Place], places: range) -> list[Tensor]:
        """By head group int64 [T]."""
        order = np.arange(places.start, places.stop)
        return [self._slots(pages, order, group) for group in range(self.pool.layout.num_groups)]

    def _on_its_device(self) -> AbstractContextManager[Any]:
        """Kernels are launched on a thread's current device, and this thread's may be another."""
        device = self.pool.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _unwatched(self, batch: AttnBatch, token_ids: Tensor, wanted: list[int]) -> Tensor:
        """As ``_forward``, where nobody looks at a layer's states."""
        return self._forward(batch, token_ids, wanted)

    def _forward(self, batch: AttnBatch, token_ids: Tensor, wanted: list[int]) -> Tensor:
        """The logits [len(wanted), V] of some rows."""
        every = len(wanted) == len(token_ids)  # which the model knows as 0, and copies no hidden states for
        out = self.model(
            input_ids=token_ids[None],
            position_ids=batch.positions[None],
            use_cache=False,
            attn=batch,
            logits_to_keep=0 if every else on_device(wanted, torch.int64, self.pool.device),
        )
        return out.logits[0]

    def _scores(self, part: Slice, hidden: Tensor) -> list[TokenLogprobs]:
        """Log-probabilities of a slice's targets; hidden [n, d] of all its rows."""
        count = part.request.params.prompt_logprobs or 0
        found: list[TokenLogprobs] = []
        for first in range(0, len(part.targets), SCORED_ROWS):
            targets = part.targets[first : first + SCORED_ROWS]
            logits = logits_of(self.model, hidden[first : first + len(targets)])
            found += token_logprobs(logits, targets, count)
        return found

    def _build(self, slices: Sequence[Slice]) -> tuple[AttnBatch, Tensor, list[int], list[int]]:
        device = self.pool.device
        token_ids: list[int] = []
        positions: list[np.ndarray] = []
        orders: list[np.ndarray] = []
        masks: list[np.ndarray | None] = []
        wanted: list[int] = []
        first_row: list[int] = []
        cu_seqlens = [0]
        for part in slices:
            count = len(part.token_ids)
            order = np.arange(part.start, part.start + part.num_rows)
            place = order.copy()
            token_ids += part.token_ids
            if len(grown := part.grown):
                token_ids += grown.tokens.tolist()
                place[count:] = part.start + count - 1 + grown.depths[1:]
                masks.append(tree_mask(count, part.sees))
            else:
                masks.append(None)
            positions.append(place)
            orders.append(order)
            end = cu_seqlens[-1] + part.num_rows
            first_row.append(len(wanted) if part.samples else -1)
            if part.samples:
                first = cu_seqlens[-1]
                wanted += range(first + (0 if part.all_logits else count - 1), first + count + part.num_nodes)
            cu_seqlens.append(end)
        policies = [part.request.policy for part in slices]
        sequences = [part.request.pages for part in slices]
        tables = []
        for group in range(self.pool.layout.num_groups):
            slots = [self._slots(pages, order, group) for pages, order in zip(sequences, orders, strict=True)]
            tables.append(GroupTables(self._table(sequences, group), torch.cat(slots)))
        batch = AttnBatch(
            pool=self.pool,
            cu_seqlens=on_device(cu_seqlens, torch.int32, device),
            context_lens=on_device([p.start for p in slices], torch.int32, device),
            tables=tables,
            positions=on_device(np.concatenate(positions).tolist(), torch.int64, device),
            tree_masks=_on_device(masks, device),
            policies=policies if any(p is not None for p in policies) else None,
            needed=self._needed(slices, any(mask is not None for mask in masks)),
            backend=self.backend,
        )
        return batch, on_device(token_ids, torch.int64, device), wanted, first_row

    def _needed(self, slices: Sequence[Slice], trees: bool) -> list[int] | None:
        """Of how many of its last rows each slice reads the output; None where that is all rows."""
        if trees and self.pool.device.type == "cuda":  # there masks are packed for all rows
            return None
        sampled = [0 if not p.samples else p.num_rows - (0 if p.all_logits else len(p.token_ids) - 1) for p in slices]
        counts = [max(n, p.hidden_rows, p.state_rows) for n, p in zip(sampled, slices, strict=True)]
        return None if all(n == p.num_rows for n, p in zip(counts, slices, strict=True)) else counts

    def _table(self, sequences: Sequence[Sequence[Place]], group: int) -> Tensor:
        """Block table int32 [S, P] of one head group; a page that was dropped is nobody's, the pool's last."""
        table = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int32)
        for row, pages in zip(table, sequences, strict=True):
            row[: len(pages)] = [place[group] for place in pages]
        table[table == GONE] = self.pool.num_pages
        return to_device(torch.from_numpy(table), self.pool.device)

    def _slots(self, pages: Sequence[Place], order: np.ndarray, group: int = 0) -> Tensor:
        """Slots of the ``order``-th tokens of a sequence in one head group, int64, same shape."""
        size = self.pool.page_size
        first = int(order.min()) // size if order.size else 0
        table = np.array([place[group] for place in pages[first:]], dtype=np.int64)
        return to_device(torch.from_numpy(table[order // size - first] * size + order % size), self.pool.device)


def _on_device(masks: Sequence[np.ndarray | None], device: torch.device) -> Sequence[Tensor | None] | None:
    """`AttnBatch.tree_masks`: packed in one tensor for the kernels of a GPU."""
    if device.type == "cuda":
        return TreeMasks.pack(masks, device)
    if all(mask is None for mask in masks):
        return None
    return [None if mask is None else torch.from_numpy(mask) for mask in masks]


def _below(tree: DraftTree, known: int) -> DraftTree:
    """The nodes ``known:`` of a tree whose other nodes are a chain above them all."""
    return DraftTree.of(tree.tokens[known:], np.maximum(tree.parents[known:] - known, -1))


def tree_mask(count: int, ancestors: np.ndarray) -> np.ndarray:
    """bool [n, n] over ``count`` tokens and a tree below the last: causal before, ancestor-or-self within."""
    extra = len(ancestors) - 1
    mask = np.tri(count + extra, dtype=bool)
    mask[count - 1 :, count - 1 :] = ancestors
    return mask
