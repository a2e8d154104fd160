"""`sampling.choose` for logits on a GPU: the same choices, without waiting for the device.

On a CPU it pays to look which rows are greedy, cut or neither, and to draw noise for likely tokens only. On a GPU every
look is a wait and arithmetic is cheap: here all rows go the whole way, by tensors alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drafters.sampling.noise import gumbel

ROWS_AT_ONCE = 64  # float64 over a vocabulary of 150,000 is 1.2 MB a row, and there are some of them at a time


def choose(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    any_cut: bool = True,
) -> Tensor:
    """The target's token after each row: int64 [N]; the arguments are those of `sampling.choose`, [N] each.

    ``any_cut`` says whether any row has top_k or top_p in force; the host knows, and without one nothing is sorted.
    """
    every = (logits, temperature, top_k, top_p, seeds, positions)
    parts = zip(*(column.split(ROWS_AT_ONCE) for column in every), strict=True)
    return torch.cat([_choose(part, any_cut) for part in parts])


def _choose(rows: tuple[Tensor, ...], any_cut: bool) -> Tensor:
    logits, temperature, top_k, top_p, seeds, positions = rows
    greedy = temperature == 0
    scaled = logits.to(torch.float64) / torch.where(greedy, 1.0, temperature)[:, None]
    scores = scaled + gumbel(seeds, positions, logits.shape[-1])
    if any_cut:
        scores = scores.masked_fill(~_kept(scaled, top_k, top_p), -torch.inf)
    return torch.where(greedy, torch.argmax(logits, dim=-1), torch.argmax(scores, dim=-1))


def _kept(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """bool [N, V]: top-k first, then top-p of what is left; of equals at the border the lowest ids."""
    vocab = scaled.shape[-1]
    most = torch.where((top_k <= 0) | (top_k > vocab), vocab, top_k)[:, None]
    values = scaled.sort(dim=-1, descending=True).values
    ranks = torch.arange(vocab, device=scaled.device)
    inside = ranks < most
    mass = torch.softmax(values.masked_fill(~inside, -torch.inf), dim=-1)
    before = torch.cumsum(mass, -1) - mass
    # What rounding makes of a sum must not cut a row that keeps every token.
    count = ((before < top_p[:, None]) & inside).sum(-1, keepdim=True).clamp(min=1)
    count = torch.where(top_p[:, None] >= 1, most, count)
    border = values.gather(1, count - 1)
    above, equal = scaled > border, scaled == border
    room = count - above.sum(-1, keepdim=True)
    return above | (equal & (torch.cumsum(equal, -1) <= room))
