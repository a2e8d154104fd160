"""Sequences of random or planted q, k, v with the context in shuffled pages."""

from dataclasses import dataclass

import pytest
import torch

from sparse_attn.kernels import dense
from sparse_attn.kernels.operands import Pages, Rows
from sparse_attn.kv.page_stats import PageStats
from sparse_attn.rows import HeadPages, SequenceRows


@dataclass
class PagedSequence:
    """One sequence of one layer: all of its q [n, Hq, D], k and v [n, Hkv, D], and a pool that holds them."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    page_size: int
    seed: int = 0

    def __post_init__(self):
        pages = -(-len(self.k) // self.page_size)
        shape = (pages + 3, self.k.shape[1], self.page_size, self.k.shape[2])
        generator = torch.Generator().manual_seed(self.seed)
        self.table = torch.randperm(pages + 3, generator=generator)[:pages].int()
        self.key_pages = torch.full(shape, torch.nan, dtype=self.k.dtype)
        self.value_pages = torch.full(shape, torch.nan, dtype=self.k.dtype)
        self.stats = PageStats(1, shape[0], shape[1], self.page_size, shape[3])
        self.slots = self.table.long()[torch.arange(len(self.k)) // self.page_size] * self.page_size
        self.slots += torch.arange(len(self.k)) % self.page_size
        self.scale = self.k.shape[2] ** -0.5

    def store(self, first, end):
        """Write tokens first:end into the pages."""
        slots = self.slots[first:end]
        for pages, x in ((self.key_pages, self.k), (self.value_pages, self.v)):
            pages[slots // self.page_size, :, slots % self.page_size] = x[first:end]
        self.stats.update(0, self.key_pages, slots)

    def rows(self, first, end, **kwargs):
        """The rows first:end, new, over a context of the tokens before them."""
        held = HeadPages(range(self.k.shape[1]), self.key_pages, self.table, stats=self.stats)
        return SequenceRows(self.q[first:end], self.k[first:end], self.scale, first, [held] if first else [], **kwargs)

    def attend(self, first, end, index, window=0):
        """Attention of the rows first:end by the reference kernels, with an index or densely: [n, Hq, D]."""
        new = (x[first:end] for x in (self.q, self.k, self.v))
        rows = Rows.of_sequence(*new, self.scale, first, window=window)
        return dense.attention(Pages(self.key_pages, self.value_pages, self.table[None]), rows, index)[0]


@pytest.fixture
def make_sequence():
    """A PagedSequence with structure: smooth drift, a few keys that all queries like, and noise."""

    def make(length, num_heads=4, num_kv_heads=2, dim=16, page_size=16, seed=0, dtype=torch.float64):
        g = torch.Generator().manual_seed(seed)

        def noise(*shape):
            return torch.randn(*shape, generator=g, dtype=dtype)

        drift = noise(length, 1, dim).cumsum(0) * 0.3
        k = noise(length, num_kv_heads, dim) + drift / drift.norm(dim=-1, keepdim=True) * 2
        q = noise(length, num_heads, dim) + drift / drift.norm(dim=-1, keepdim=True) * 2
        liked = torch.randint(0, length, (max(1, length // 40),), generator=g)
        q[..., 0] += 3
        k[liked, :, 0] += 4
        return PagedSequence(q, k, noise(length, num_kv_heads, dim), page_size, seed)

    return make
