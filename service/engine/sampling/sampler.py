"""From logits to tokens: the target's choices along each request's tree, keyed so that the grouping into steps does
not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from drafters.sampling.choice import choose
from drafters.sampling.walk import walk
from drafters.tree import DraftTree
from drafters.verify import NO_TOKEN, Verdict, verify
from service.engine.outputs import TokenLogprobs
from service.engine.params import SamplingParams
from sparse_attn.host_values import to_device


@dataclass(frozen=True)
class RowKeys:
    """How the rows of logits are to be sampled: of each request one for its pending token and one for each node.

    Attributes:
        params: of each request.
        trees: below the pending token of each.
        positions: of the token after each pending token.
    """

    params: Sequence[SamplingParams]
    trees: Sequence[DraftTree]
    positions: Sequence[int]

    @property
    def any_cut(self) -> bool:
        """Whether top_k or top_p is in force for any."""
        return any(p.temperature and (p.top_k > 0 or p.top_p < 1) for p in self.params)


def sample(logits: Tensor, keys: RowKeys) -> list[Verdict]:
    """What each request's tree and the target's choices come to; logits [R, V]. The device is waited for once.

    A verdict ends with NO_TOKEN where it came to a row from which none can be chosen.
    """
    ends = list(accumulate(1 + len(tree) for tree in keys.trees))
    rows = [slice(end - 1 - len(tree), end) for end, tree in zip(ends, keys.trees, strict=True)]
    greedy = all(p.temperature == 0 for p in keys.params)
    if logits.is_cpu and not keys.any_cut and (greedy or has_choice(logits).all()):
        of_requests = zip(rows, keys.params, keys.trees, keys.positions, strict=True)
        return [walk(logits[own], tree, p.temperature, p.seed, position) for own, p, tree, position in of_requests]
    choices = choose_tokens(logits, keys).tolist()
    return [verify(tree, choices[own]) for tree, own in zip(keys.trees, rows, strict=True)]


def has_choice(logits: Tensor) -> Tensor:
    """bool [R]: whether a token can be chosen from each row of logits [R, V]. A NaN in a row is its maximum."""
    return torch.isfinite(logits.amax(dim=-1))


def choose_tokens(logits: Tensor, keys: RowKeys) -> Tensor:
    """The target's token after each row, int64 [R] where the logits are; NO_TOKEN where none can be chosen."""
    params, any_cut = keys.params, keys.any_cut
    counts = [1 + len(tree) for tree in keys.trees]
    columns = (
        np.repeat(np.array([p.temperature for p in params], dtype=np.float64), counts),
        np.repeat(np.array([p.top_k for p in params], dtype=np.int64), counts),
        np.repeat(np.array([p.top_p for p in params], dtype=np.float64), counts),
        np.repeat(np.array([p.seed for p in params], dtype=np.int64), counts),
        np.concatenate([at + tree.depths for at, tree in zip(keys.positions, keys.trees, strict=True)]),
    )
    if logits.is_cuda:
        from drafters.sampling import device

        with torch.cuda.device(logits.device):  # kernels are launched on the thread's own, which may be another
            return device.choose(logits, to_device(device.packed(columns), logits.device), any_cut=any_cut)
    return torch.where(has_choice(logits), choose(logits, *columns, any_cut=any_cut), NO_TOKEN)


def token_logprobs(logits: Tensor, token_ids: Sequence[int], count: int) -> list[TokenLogprobs]:
    """Log-probabilities of the model's own distribution (before temperature and cuts); logits [n, V], a token each."""
    total = torch.logsumexp(logits.double(), dim=-1, keepdim=True)
    chosen = logits.gather(1, torch.tensor(token_ids, dtype=torch.int64, device=logits.device)[:, None])
    rank = (logits > chosen).sum(dim=-1) + 1
    top = torch.topk(logits, min(count, logits.shape[1]))
    columns = [(chosen.double() - total)[:, 0], rank, top.indices, top.values.double() - total]
    return [
        TokenLogprobs(token, logprob, place, list(zip(ids, values, strict=True)))
        for token, logprob, place, ids, values in zip(token_ids, *(c.tolist() for c in columns), strict=True)
    ]
