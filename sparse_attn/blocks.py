"""BlockIndex: which blocks of keys each block of queries visits.

The one sparse representation: a prefill pattern, a page selection of decode and full attention are all a
`BlockIndex`; every kernel takes it and nothing else.

* Keys are cut at absolute positions: key block ``j`` of a sequence is its positions ``j*block_k`` to
  ``(j+1)*block_k - 1``, whether they lie in pages (block j is page j where block_k is the page size) or are
  new in this forward.
* Query rows are cut at absolute positions too: a query block is a run of at most ``block_q`` rows of one
  sequence that does not cross a multiple of ``block_q``. So a static pattern gives the same index however the
  prompt is cut into chunks. Decode is the case ``block_q = 1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sparse_attn.errors import BlockIndexError
from sparse_attn.host_values import host_list, on_device
from sparse_attn.kv.head_layout import query_heads

PAD = -1


@dataclass(frozen=True)
class BlockIndex:
    """Key blocks to visit, for S sequences with N query blocks in all and H heads.

    Attributes:
        counts: int32 [H, N], number of key blocks that the query block visits.
        ids: int32 [H, N, M], their numbers, ascending, in ``[..., :counts]``; -1 after.
        cu_rows: int32 [N + 1]; query block n is rows ``cu_rows[n]:cu_rows[n+1]`` of the T rows of the batch.
        block_seq: int32 [N], ascending; the sequence of each query block.
        q_offset: int32 [S], position of each sequence's first new row, i.e. its number of tokens in pages.
        k_offset: int32 [S], position of the first key that the kernel is given: 0 for keys in pages,
            ``q_offset`` for the keys of the new rows (see `split`).
        block_q: most rows a query block may have.
        block_k: keys a block; the page size wherever keys lie in pages.

    H is the number of KV heads (the group shares the blocks) or of query heads. Causality is the kernel's: an
    index may name a block that is visible only in part.
    """

    counts: Tensor
    ids: Tensor
    cu_rows: Tensor
    block_seq: Tensor
    q_offset: Tensor
    k_offset: Tensor
    block_q: int
    block_k: int

    # --- shape ------------------------------------------------------------------------------------

    @property
    def num_heads(self) -> int:
        return self.counts.shape[0]

    @property
    def num_query_blocks(self) -> int:
        return self.counts.shape[1]

    @cached_property
    def seq_rows(self) -> Tensor:
        """int64 [S + 1]: first row of each sequence among the T rows, and T."""
        bounds = torch.searchsorted(
            self.block_seq.long(), torch.arange(len(self.q_offset) + 1, device=self.counts.device)
        )
        return self.cu_rows.long()[bounds]

    @cached_property
    def first_positions(self) -> Tensor:
        """int64 [N]: position of each query block's first row (a tree's rows count in order of storage)."""
        seq = self.block_seq.long()
        return self.q_offset.long()[seq] + self.cu_rows[:-1].long() - self.seq_rows[seq]

    @cached_property
    def last_positions(self) -> Tensor:
        """int64 [N]: position of each query block's last row."""
        return self.first_positions + (self.cu_rows[1:] - self.cu_rows[:-1]).long() - 1

    @cached_property
    def causal_counts(self) -> Tensor:
        """int64 [N]: key blocks that full causal attention would visit, between k_offset and the last row."""
        first = self.k_offset.long()[self.block_seq.long()] // self.block_k
        return self.last_positions // self.block_k - first + 1

    def density(self) -> float:
        """Visited ÷ causal blocks over all heads; 1.0 for a full index and for an empty one."""
        causal = int(self.causal_counts.sum()) * self.num_heads
        return float(self.counts.sum()) / causal if causal else 1.0

    # --- building ---------------------------------------------------------------------------------

    @classmethod
    def full(
        cls,
        query_lens: Sequence[int],
        q_offset: Sequence[int],
        *,
        num_heads: int,
        block_q: int,
        block_k: int,
        device: torch.device | str = "cpu",
    ) -> BlockIndex:
        """Dense causal attention as an index: every block that holds a key at or before the last row."""
        cu_rows, block_seq, last = query_blocks(query_lens, q_offset, block_q, device)
        counts = last // block_k + 1
        width = int(counts.max()) if len(counts) else 0
        ids = torch.arange(width, device=device).expand(len(counts), width)
        ids = ids.masked_fill(ids >= counts[:, None], PAD).int()
        offsets = torch.as_tensor(q_offset, dtype=torch.int32, device=device)
        return cls(
            counts.int().expand(num_heads, -1).contiguous(),
            ids.expand(num_heads, -1, -1).contiguous(),
            cu_rows,
            block_seq,
            offsets,
            torch.zeros_like(offsets),
            block_q,
            block_k,
        )

    @classmethod
    def from_mask(
        cls,
        mask: Tensor,
        query_lens: Sequence[int],
        q_offset: Sequence[int],
        *,
        block_q: int,
        block_k: int,
        width: int | None = None,
    ) -> BlockIndex:
        """From ``mask`` bool [H, N, K]: does query block n visit key block k.

        The query blocks are those that `query_blocks` cuts; blocks of the future are dropped. ``width`` is M;
        by default the largest count, which a GPU has to be waited for.
        """
        cu_rows, block_seq, last = query_blocks(query_lens, q_offset, block_q, mask.device)
        if mask.shape[1] != len(block_seq):
            raise BlockIndexError(f"the mask has {mask.shape[1]} query blocks, the batch {len(block_seq)}")
        offsets = on_device(q_offset, torch.int32, mask.device)
        counts, ids = compact(mask, last // block_k, width)
        return cls(counts, ids, cu_rows, block_seq, offsets, torch.zeros_like(offsets), block_q, block_k)

    @classmethod
    def of_runs(
        cls, mask: Tensor, run_lens: Sequence[int], q_offset: int, *, block_k: int, width: int | None = None
    ) -> BlockIndex:
        """One sequence whose rows are cut into runs of given lengths: mask bool [H, runs, K], as `from_mask`.

        For decode, where the rows that share a page selection are a run.
        """
        sizes = on_device(run_lens, torch.int32, mask.device)
        if mask.shape[1] != len(sizes):
            raise BlockIndexError(f"the mask has {mask.shape[1]} query blocks for {len(sizes)} runs of rows")
        cu_rows = torch.nn.functional.pad(sizes.cumsum(0, dtype=torch.int32), (1, 0))
        counts, ids = compact(mask, (q_offset + cu_rows[1:].long() - 1) // block_k, width)
        offset = on_device([q_offset], torch.int32, mask.device)
        seq = torch.zeros_like(sizes)
        return cls(counts, ids, cu_rows, seq, offset, torch.zeros_like(offset), max(run_lens, default=1), block_k)

    @classmethod
    def cat(cls, parts: Sequence[BlockIndex]) -> BlockIndex:
        """One index over the sequences of all parts, in order.

        Raises:
            BlockIndexError: parts differ in block sizes, or in heads in a way that repeating cannot mend.
        """
        if not parts:
            raise BlockIndexError("no index to join")
        if len({(p.block_q, p.block_k) for p in parts}) > 1:
            raise BlockIndexError("indices of different block sizes cannot be joined; refine() them first")
        heads = max(p.num_heads for p in parts)
        parts = [p.expand_heads(heads) for p in parts]
        width = max(p.ids.shape[-1] for p in parts)
        ids = [torch.nn.functional.pad(p.ids, (0, width - p.ids.shape[-1]), value=PAD) for p in parts]
        rows, seqs, cu_rows, block_seq = 0, 0, [parts[0].cu_rows[:1]], []
        for p in parts:
            cu_rows.append(p.cu_rows[1:] + rows)
            block_seq.append(p.block_seq + seqs)
            rows, seqs = rows + int(p.cu_rows[-1]), seqs + len(p.q_offset)
        return cls(
            torch.cat([p.counts for p in parts], dim=1),
            torch.cat(ids, dim=1),
            torch.cat(cu_rows),
            torch.cat(block_seq),
            torch.cat([p.q_offset for p in parts]),
            torch.cat([p.k_offset for p in parts]),
            parts[0].block_q,
            parts[0].block_k,
        )

    # --- changing ---------------------------------------------------------------------------------

    def split(self) -> tuple[BlockIndex, BlockIndex]:
        """(the part over the context in pages, the part over the new rows' own keys).

        Block numbers stay absolute in both. A block that holds the last tokens in pages and the first new
        ones is in both parts; each kernel reads the keys it has.
        """
        seq = self.block_seq.long()
        offset = self.q_offset.long()[seq]
        in_pages = ((offset + self.block_k - 1) // self.block_k)[:, None]
        first_new = (offset // self.block_k)[:, None]
        used = self.ids != PAD
        context_counts = (used & (self.ids < in_pages)).sum(-1, dtype=torch.int32)
        skipped = (used & (self.ids < first_new)).sum(-1, dtype=torch.int32)
        context_ids = _window(self.ids, torch.zeros_like(skipped), context_counts)
        new_counts = self.counts - skipped
        new_ids = _window(self.ids, skipped, new_counts)
        return (
            replace(self, counts=context_counts, ids=context_ids),
            replace(self, counts=new_counts, ids=new_ids, k_offset=self.q_offset),
        )

    def expand_heads(self, num_heads: int) -> BlockIndex:
        """The same index with every head's row repeated for its group of ``num_heads // H`` heads."""
        if num_heads % self.num_heads:
            raise BlockIndexError(f"an index of {self.num_heads} heads cannot serve {num_heads} heads")
        group = num_heads // self.num_heads
        if group == 1:
            return self
        return replace(self, counts=self.counts.repeat_interleave(group, 0), ids=self.ids.repeat_interleave(group, 0))

    def take_heads(self, kv_heads: Sequence[int], num_kv_heads: int) -> BlockIndex:
        """The index of some of the KV heads, in this order; of their query heads where each has blocks of its own."""
        rows = torch.tensor(query_heads(kv_heads, self.num_heads // num_kv_heads), device=self.counts.device)
        return replace(self, counts=self.counts[rows], ids=self.ids[rows])

    def last_rows(self, count: int) -> BlockIndex:
        """The index of the last ``count`` rows of its only sequence, which see what they saw."""
        ends = host_list(self.cu_rows)[1:]
        skipped = ends[-1] - count
        first = sum(end <= skipped for end in ends)
        return replace(
            self,
            counts=self.counts[:, first:],
            ids=self.ids[:, first:],
            cu_rows=(self.cu_rows[first:] - skipped).clamp(min=0),
            block_seq=self.block_seq[first:],
            q_offset=self.q_offset + skipped,
        )

    def refine(self, block_k: int) -> BlockIndex:
        """The same keys in smaller blocks, such as pages; blocks beyond the last row are dropped."""
        if self.block_k % block_k:
            raise BlockIndexError(f"blocks of {self.block_k} keys cannot be cut into blocks of {block_k}")
        parts = self.block_k // block_k
        if parts == 1:
            return self
        fine = self.ids[..., None] * parts + torch.arange(parts, device=self.ids.device, dtype=torch.int32)
        fine = fine.masked_fill((self.ids == PAD)[..., None], PAD).flatten(-2)
        last = (self.last_positions // block_k)[:, None]
        fine = fine.masked_fill(fine > last, PAD)
        return replace(self, counts=(fine != PAD).sum(-1, dtype=torch.int32), ids=fine, block_k=block_k)

    def to(self, device: torch.device | str) -> BlockIndex:
        tensors = ("counts", "ids", "cu_rows", "block_seq", "q_offset", "k_offset")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    # --- reading ----------------------------------------------------------------------------------

    def to_mask(self, num_key_blocks: int | None = None) -> Tensor:
        """bool [H, N, K]: does query block n visit key block k."""
        if num_key_blocks is None:
            num_key_blocks = int(self.ids.max()) + 1 if self.ids.numel() else 0
        mask = torch.zeros(*self.counts.shape, num_key_blocks + 1, dtype=torch.bool, device=self.ids.device)
        mask.scatter_(-1, self.ids.masked_fill(self.ids == PAD, num_key_blocks).long(), True)
        return mask[..., :-1]

    def mask(self, sequence: int, rows: slice, num_keys: int) -> Tensor:
        """bool [H, rows, num_keys]: keys that rows of one sequence may see, before causality.

        ``rows`` count from the sequence's first new row; key i lies at position ``k_offset + i``.
        """
        start = int(self.seq_rows[sequence])
        row_ids = torch.arange(start + rows.start, start + rows.stop, device=self.ids.device)
        block = torch.searchsorted(self.cu_rows[1:].long(), row_ids, right=True)
        origin = int(self.k_offset[sequence])
        key_blocks = (origin + torch.arange(num_keys, device=self.ids.device)) // self.block_k
        width = (origin + num_keys - 1) // self.block_k + 1 if num_keys else 0
        visited = torch.zeros(self.num_heads, len(block), width + 1, dtype=torch.bool, device=self.ids.device)
        ids = self.ids[:, block]
        visited.scatter_(-1, ids.masked_fill((ids == PAD) | (ids >= width), width).long(), True)
        return visited[..., key_blocks]

    def validate(self, *, num_kv_heads: int, num_q_heads: int, page_size: int | None = None) -> BlockIndex:
        """Check the index against itself and the kernel's heads and pages; returns it.

        For tests and for input from outside: it reads the tensors on the host.

        Raises:
            BlockIndexError: says what does not fit.
        """
        if self.num_heads not in (num_kv_heads, num_q_heads):
            raise BlockIndexError(
                f"the index has {self.num_heads} heads; "
                f"the model has {num_kv_heads} KV heads and {num_q_heads} query heads"
            )
        if page_size is not None and self.block_k != page_size:
            raise BlockIndexError(
                f"the index has blocks of {self.block_k} keys, the pages hold {page_size}: use refine()"
            )
        sizes = (self.cu_rows[1:] - self.cu_rows[:-1]).long()
        if bool(((sizes < 1) | (sizes > self.block_q)).any()):
            raise BlockIndexError(f"a query block must have 1 to {self.block_q} rows")
        slots = torch.arange(self.ids.shape[-1], device=self.ids.device)
        used = slots < self.counts[..., None]
        if bool((used != (self.ids != PAD)).any()):
            raise BlockIndexError("ids must be filled up to counts and -1 after")
        steps = self.ids[..., 1:] > self.ids[..., :-1]
        if bool((used[..., 1:] & ~steps).any()):
            raise BlockIndexError("ids must ascend")
        if bool((self.ids > (self.last_positions // self.block_k)[:, None]).any()):
            raise BlockIndexError("an id names a block beyond the last row")
        return self


def query_blocks(
    query_lens: Sequence[int], q_offset: Sequence[int], block_q: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the new rows of every sequence at multiples of ``block_q`` in absolute positions.

    Returns:
        cu_rows int32 [N + 1], block_seq int32 [N], and the position int64 [N] of each block's last row.
    """
    if len(query_lens) != len(q_offset):
        raise BlockIndexError(f"{len(query_lens)} query lengths for {len(q_offset)} sequences")
    cu_rows, block_seq, last, row = [0], [], [], 0
    for s, (length, offset) in enumerate(zip(query_lens, q_offset, strict=True)):
        position, end = offset, offset + length
        while position < end:
            stop = min(end, (position // block_q + 1) * block_q)
            row += stop - position
            cu_rows.append(row)
            block_seq.append(s)
            last.append(stop - 1)
            position = stop
    return (
        on_device(cu_rows, torch.int32, torch.device(device)),
        on_device(block_seq, torch.int32, torch.device(device)),
        on_device(last, torch.int64, torch.device(device)),
    )


def _most(count: Tensor) -> int:
    return int(count.max()) if count.numel() else 0


def compact(mask: Tensor, last_block: Tensor, width: int | None) -> tuple[Tensor, Tensor]:
    """mask bool [H, N, K], last_block int64 [N] → counts int32 [H, N] and ids int32 [H, N, width]."""
    blocks = torch.arange(mask.shape[2], dtype=torch.int32, device=mask.device)
    visited = mask & (blocks <= last_block[:, None])
    ranks = visited.cumsum(-1, dtype=torch.int32)
    counts = ranks[..., -1].contiguous() if mask.shape[2] else visited.sum(-1, dtype=torch.int32)
    if width is None:
        width = _most(counts)
    ids = blocks.new_full((*mask.shape[:2], width + 1), PAD)
    # Column `width` takes what is not visited; it is cut off, and its value does not matter.
    ids.scatter_(-1, torch.where(visited, ranks - 1, width).long(), blocks.expand(mask.shape))
    return counts, ids[..., :width].contiguous()


def _window(ids: Tensor, start: Tensor, count: Tensor) -> Tensor:
    """ids [H, N, M], start and count [H, N] → `count` entries from `start` on, then -1."""
    width = _most(count) if not count.is_cuda else ids.shape[-1]  # a GPU would have to be waited for
    slots = torch.arange(width, device=ids.device)
    source = start[..., None].long() + slots
    picked = ids.gather(-1, source.clamp(max=max(ids.shape[-1] - 1, 0))) if width else ids[..., :0]
    return picked.masked_fill(slots >= count[..., None], PAD)
