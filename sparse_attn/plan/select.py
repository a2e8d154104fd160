"""From scores of blocks and of pages to those that are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_attn.blocks import PAD


def top_k(scores: Tensor, k: int, *, forced: Tensor | None = None) -> Tensor:
    """The k best blocks of each row, the forced ones among them, as bool [..., K].

    scores float [..., K], -inf where a block must not be taken; forced bool, broadcastable: kept whatever their
    score, and counted within k. A row with fewer than k blocks keeps all it has.
    """
    ranked = scores if forced is None else scores.masked_fill(forced, torch.inf)
    k = min(k, scores.shape[-1])
    chosen = torch.zeros(ranked.shape, dtype=torch.bool, device=scores.device)
    if k > 0:
        chosen.scatter_(-1, ranked.topk(k, dim=-1).indices, True)
    chosen &= scores > -torch.inf
    return chosen if forced is None else chosen | forced


def top_p(weights: Tensor, p: float, *, forced: Tensor | None = None) -> Tensor:
    """The fewest blocks of each row whose weights sum to at least ``p`` of the row's total, as bool [..., K].

    weights float [..., K], not negative, 0 where a block must not be taken. Forced blocks (bool, broadcastable)
    are kept first and their weight counts (XAttention, arXiv 2503.16428, section 2.2).
    """
    ranked = weights if forced is None else weights.masked_fill(forced, torch.inf)
    order = ranked.argsort(dim=-1, descending=True)
    ordered = weights.gather(-1, order)
    before = ordered.cumsum(-1) - ordered
    wanted = (before < p * weights.sum(-1, keepdim=True)) & (ordered > 0)
    chosen = torch.zeros_like(wanted).scatter_(-1, order, wanted)
    return chosen if forced is None else chosen | forced


def page_weights(bounds: Tensor, scale: float, num_kv_heads: int, first: int, end: Tensor) -> Tensor:
    """Share of attention each page may hold, one answer for a KV head's group of query heads.

    bounds [R, Hq, P]; candidates are the pages ``first <= j < end[r]`` (end int64 [R]). Softmax of each query head's
    bounds over the candidates, averaged over the group, so that no head's scale outvotes the others.

    Returns:
        float32 [R, Hkv, P], -inf for pages that are no candidates.
    """
    pages = torch.arange(bounds.shape[-1], device=bounds.device)
    outside = ((pages < first) | (pages >= end[:, None]))[:, None]  # [R, 1, P]
    weights = torch.softmax((bounds * scale).masked_fill(outside, -torch.inf), dim=-1).nan_to_num(0.0)
    return weights.unflatten(1, (num_kv_heads, -1)).mean(2).masked_fill(outside, -torch.inf)


def best_pages(weights: Tensor, k: int, top_p: float = 1.0) -> Tensor:
    """The k heaviest pages, ascending: weights [R, H, P] → int32 [R, H, k], -1 at the end where fewer qualify.

    With ``top_p`` < 1 only the heaviest that reach this share of the k pages' weight stay (Twilight, 2502.02770).
    """
    k = min(k, weights.shape[-1])
    values, pages = weights.topk(k, dim=-1)
    kept = values > -torch.inf
    if top_p < 1.0:
        mass = values.clamp(min=0)
        kept &= (mass.cumsum(-1) - mass) < top_p * mass.sum(-1, keepdim=True)
    nowhere = weights.shape[-1]
    ordered = torch.where(kept, pages, nowhere).sort(-1).values
    return ordered.masked_fill(ordered == nowhere, PAD).int()
