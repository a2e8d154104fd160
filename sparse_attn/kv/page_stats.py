"""Bounds of the keys in each page of a pool, from which decode tells the pages that may matter.

Quest (arXiv 2406.10774) keeps the smallest and largest key of a page in every channel; with them
sum_d max(q_d*kmin_d, q_d*kmax_d) bounds q·k for all keys of the page from above. LServe (arXiv 2502.14866, section 3.3)
takes the bounds of four logical pages in one physical page and ranks the page by the largest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_attn.errors import PolicyError
from sparse_attn.kv.quant import HALF_STEP

LOGICAL_PAGE = 16


class PageStats:
    """Smallest and largest key of every logical page of a KV pool, per layer, head and channel, in float32.

    Of int8 pages they are the bounds of the keys before quantisation: each code is taken for the half step around it,
    in which its key lay (and lies). So they are a function of the page alone, whatever drafts were written there
    meanwhile. Call `update` after every write into the pool.

    Attributes:
        kmin, kmax: by layer [num_pages, Hkv, page_size // logical, D], numbered as the pool's pages are, so sequences
            that share a page share its bounds.
        page_size, logical: tokens of a page and of a logical page.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        num_kv_heads: int,
        page_size: int,
        head_dim: int,
        *,
        logical: int = LOGICAL_PAGE,
        device: torch.device | str = "cpu",
    ) -> None:
        logical = min(logical, page_size)
        if page_size % logical:
            raise PolicyError(f"pages of {page_size} tokens cannot be cut into logical pages of {logical}")
        self.page_size, self.logical = page_size, logical
        shape = (num_pages, num_kv_heads, page_size // logical, head_dim)
        self.kmin = [torch.zeros(shape, device=device) for _ in range(num_layers)]
        self.kmax = [torch.zeros(shape, device=device) for _ in range(num_layers)]

    @classmethod
    def over(cls, kmin: list[Tensor], kmax: list[Tensor], page_size: int) -> PageStats:
        """Statistics that live in given tensors, one a layer."""
        stats = cls.__new__(cls)
        stats.page_size, stats.logical = page_size, page_size // kmin[0].shape[2]
        stats.kmin, stats.kmax = kmin, kmax
        return stats

    def update(self, layer: int, key_pages: Tensor, slots: Tensor, key_scales: Tensor | None = None) -> None:
        """Bring the bounds up to date after keys were written to ``slots`` int64 [T] (-1: nowhere).

        ``key_pages`` [num_pages, Hkv, page_size, D] is the pool's tensor after the write. Pages fill in order, so a
        logical page holds tokens up to its last written slot; what lies beyond is of an earlier owner.
        ``key_scales`` float16 [num_pages, Hkv, page_size] come with int8 pages.
        """
        if key_pages.is_cuda:
            from sparse_attn.kernels.triton.page_stats import update_page_stats

            update_page_stats(self.kmin[layer], self.kmax[layer], key_pages, slots, key_scales)
            return
        slots = slots[slots >= 0]
        tiles, which = torch.unique(slots // self.logical, return_inverse=True)
        filled = torch.zeros_like(tiles).scatter_reduce_(0, which, slots % self.logical, "amax") + 1
        self._recompute(layer, key_pages, tiles, filled, key_scales)

    def rebuild(self, layer: int, key_pages: Tensor, key_scales: Tensor | None = None) -> None:
        """Recompute every page of a layer, as when the first request asks for page selection."""
        every = torch.arange(self.kmin[layer].shape[0] * self.kmin[layer].shape[2], device=key_pages.device)
        for tiles in every.split(4096):
            self._recompute(layer, key_pages, tiles, torch.full_like(tiles, self.logical), key_scales)

    def _recompute(
        self, layer: int, key_pages: Tensor, tiles: Tensor, filled: Tensor, key_scales: Tensor | None
    ) -> None:
        parts = self.page_size // self.logical
        page, part = tiles // parts, tiles % parts
        keys = key_pages.unflatten(2, (parts, self.logical))[page, :, part].float()  # [n, Hkv, logical, D]
        low = high = keys
        if key_scales is not None:
            scales = key_scales.unflatten(2, (parts, self.logical))[page, :, part][..., None]
            low, high = (keys - HALF_STEP) * scales, (keys + HALF_STEP) * scales
        absent = (torch.arange(self.logical, device=keys.device) >= filled[:, None])[:, None, :, None]
        self.kmin[layer][page, :, part] = low.masked_fill(absent, torch.inf).amin(2)
        self.kmax[layer][page, :, part] = high.masked_fill(absent, -torch.inf).amax(2)

    def bounds(self, layer: int, q: Tensor, pages: Tensor) -> Tensor:
        """Upper bound of q·k over each page: q [R, Hq, D], pages int [P] → float32 [R, Hq, P]."""
        kmin, kmax = self.kmin[layer], self.kmax[layer]
        if q.device.type == "cpu":
            from sparse_attn.kernels.cpu import pages as cpu_pages

            return cpu_pages.page_bounds(q.float(), kmin, kmax, pages)
        if q.is_cuda:
            from sparse_attn.kernels.triton import page_stats as triton_stats

            count = torch.full((len(q),), len(pages), dtype=torch.int32, device=q.device)
            return triton_stats.page_bounds(q, kmin, kmax, pages.int().expand(len(q), -1).contiguous(), count)
        return page_bounds(q, kmin, kmax, pages)


def page_bounds(q: Tensor, kmin: Tensor, kmax: Tensor, pages: Tensor) -> Tensor:
    """`PageStats.bounds` in plain torch: kmin, kmax [num_pages, Hkv, parts, D]; the reference of the kernels."""
    low, high = (t[pages.long()].transpose(0, 1).flatten(1, 2) for t in (kmin, kmax))
    num_rows, _, head_dim = q.shape
    grouped = q.float().view(num_rows, len(low), -1, head_dim).transpose(0, 1).flatten(1, 2)  # [Hkv, R*G, D]
    scores = torch.bmm(grouped.clamp(min=0), high.mT) + torch.bmm(grouped.clamp(max=0), low.mT)
    best = scores.unflatten(2, (len(pages), -1)).amax(-1)  # [Hkv, R*G, P]
    return best.unflatten(1, (num_rows, -1)).transpose(0, 1).flatten(1, 2)
