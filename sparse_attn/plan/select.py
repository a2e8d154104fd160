"""From scores of blocks to the blocks that are kept."""

from __future__ import annotations

import torch
from torch import Tensor


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
