"""One forward of the unmodified transformers model over the slices of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drafters.tree import DraftTree
from service.engine.step import Slice
from sparse_attn.batch import AttnBatch, EarlierNodes
from sparse_attn.kv_pool import KVPool


@dataclass
class Forward:
    """What a forward gave.

    Attributes:
        logits: [R, V], for each sampling slice the row of its last token (of all its tokens where it asks for
            that) and then one per tree node.
        first_row: per slice, where its rows begin in ``logits``; -1 for a slice that does not sample.
        kernels: names of the attention kernels that served it.
    """

    logits: Tensor
    first_row: list[int]
    kernels: set[str]


class ModelRunner:
    """Owns the model and the pages; turns slices into tensors and back."""

    def __init__(self, model: torch.nn.Module, pool: KVPool) -> None:
        self.model = model
        self.pool = pool

    @torch.inference_mode()
    def run(self, slices: Sequence[Slice]) -> Forward:
        """Run all slices in one forward; K and V of their tokens and nodes are in the pages afterwards."""
        batch, token_ids, wanted, first_row = self._build(slices)
        logits = self._forward(batch, token_ids, wanted)
        return Forward(logits, first_row, batch.kernels)

    @torch.inference_mode()
    def run_nodes(self, pages: Sequence[int], length: int, tree: DraftTree, known: int) -> Tensor:
        """Run the nodes ``known:`` of a tree that grows behind ``length`` tokens in pages; the earlier ones lie there.

        Node i is kept at order ``length + i``; a parent of -1 is the last of the tokens in pages.

        Returns:
            Logits [len(tree) - known, V].
        """
        device, count = self.pool.device, len(tree) - known
        place = torch.from_numpy(length - 1 + tree.depths[1:]).to(device)
        slots = self._slots(pages, np.arange(length, length + len(tree)))
        mask = torch.from_numpy(tree.ancestor_mask[1 + known :, 1:]).to(device)
        table = torch.tensor([list(pages)], dtype=torch.int32, device=device)
        batch = AttnBatch(
            pool=self.pool,
            cu_seqlens_q=torch.tensor([0, count], dtype=torch.int32, device=device),
            context_lens=torch.tensor([length], dtype=torch.int32, device=device),
            block_tables=table,
            slot_mapping=slots[known:],
            positions=place[known:],
            tree_masks=[mask[:, known:]],
            earlier=EarlierNodes(slots[:known], place[:known], mask[:, :known]) if known else None,
        )
        token_ids = torch.from_numpy(tree.tokens[known:]).to(device)
        return self._forward(batch, token_ids, list(range(count)))

    @torch.inference_mode()
    def keep_nodes(self, pages: Sequence[int], length: int, path: Sequence[int]) -> None:
        """Copy K and V of the nodes ``path`` (kept from order ``length`` on) to where the sequence goes on."""
        source = [length + node for node in path]
        target = list(range(length, length + len(path)))
        if source != target:
            slots = self._slots(pages, np.array([source, target]))
            self.pool.copy_slots(slots[0], slots[1])

    def _forward(self, batch: AttnBatch, token_ids: Tensor, wanted: list[int]) -> Tensor:
        out = self.model(
            input_ids=token_ids[None],
            position_ids=batch.positions[None],
            use_cache=False,
            attn=batch,
            logits_to_keep=torch.tensor(wanted, dtype=torch.int64, device=self.pool.device),
        )
        return out.logits[0]

    def _build(self, slices: Sequence[Slice]) -> tuple[AttnBatch, Tensor, list[int], list[int]]:
        device = self.pool.device
        token_ids: list[int] = []
        positions: list[np.ndarray] = []
        slots: list[Tensor] = []
        masks: list[Tensor | None] = []
        wanted: list[int] = []
        first_row: list[int] = []
        cu_seqlens = [0]
        for part in slices:
            count = len(part.token_ids)
            order = np.arange(part.start, part.start + part.num_rows)
            place = order.copy()
            token_ids += part.token_ids
            if part.tree is not None and len(part.tree):
                token_ids += part.tree.tokens.tolist()
                place[count:] = part.start + count - 1 + part.tree.depths[1:]
                masks.append(torch.from_numpy(_tree_mask(count, part.tree.ancestor_mask)).to(device))
            else:
                masks.append(None)
            positions.append(place)
            slots.append(self._slots(part.request.pages, order))
            end = cu_seqlens[-1] + part.num_rows
            first_row.append(len(wanted) if part.samples else -1)
            if part.samples:
                wanted += range(cu_seqlens[-1] + (0 if part.all_logits else count - 1), end)
            cu_seqlens.append(end)
        policies = [part.request.policy for part in slices]
        batch = AttnBatch(
            pool=self.pool,
            cu_seqlens_q=torch.tensor(cu_seqlens, dtype=torch.int32, device=device),
            context_lens=torch.tensor([p.start for p in slices], dtype=torch.int32, device=device),
            block_tables=self._tables(slices),
            slot_mapping=torch.cat(slots),
            positions=torch.from_numpy(np.concatenate(positions)).to(device),
            tree_masks=masks if any(m is not None for m in masks) else None,
            policies=policies if any(p is not None for p in policies) else None,
        )
        return batch, torch.tensor(token_ids, dtype=torch.int64, device=device), wanted, first_row

    def _tables(self, slices: Sequence[Slice]) -> Tensor:
        width = max(len(part.request.pages) for part in slices)
        tables = np.zeros((len(slices), width), dtype=np.int32)
        for row, part in zip(tables, slices, strict=True):
            row[: len(part.request.pages)] = part.request.pages
        return torch.from_numpy(tables).to(self.pool.device)

    def _slots(self, pages: Sequence[int], order: np.ndarray) -> Tensor:
        """Slots of the ``order``-th tokens of a sequence, int64, same shape."""
        size = self.pool.page_size
        table = np.asarray(pages, dtype=np.int64)
        return torch.from_numpy(table[order // size] * size + order % size).to(self.pool.device)


def _tree_mask(count: int, ancestors: np.ndarray) -> np.ndarray:
    """bool [n, n] over ``count`` tokens and a tree below the last: causal before, ancestor-or-self within."""
    extra = len(ancestors) - 1
    mask = np.tri(count + extra, dtype=bool)
    mask[count - 1 :, count - 1 :] = ancestors
    return mask
