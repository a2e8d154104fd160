"""From logits to tokens: one call for all rows of a step, keyed so that the grouping into steps does not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drafters import sampling_device
from drafters.sampling import Guesses, choose, largest
from drafters.tree import DraftTree
from service.engine.request import SamplingParams, TokenLogprobs
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


def sample(logits: Tensor, keys: RowKeys) -> list[int]:
    """The target's choice after each row; logits [R, V] → R token ids, with one synchronisation of the device. A node's
    may be -1 where the row above it did not choose its token."""
    params = keys.params
    if all(p.temperature == 0 for p in params):
        return largest(logits).tolist()
    counts = [1 + len(tree) for tree in keys.trees]
    floats = np.array([[p.temperature for p in params], [p.top_p for p in params]], dtype=np.float64)
    integers = np.array([[p.top_k for p in params], [p.seed for p in params]], dtype=np.int64)
    temperature, top_p = np.repeat(floats, counts, axis=1)
    top_k, seeds = np.repeat(integers, counts, axis=1)
    positions = np.concatenate([at + tree.depths for at, tree in zip(keys.positions, keys.trees, strict=True)])
    columns = temperature, top_k, top_p, seeds, positions
    any_cut = any(p.temperature and (p.top_k > 0 or p.top_p < 1) for p in params)
    if logits.is_cpu:
        guesses = Guesses.of(keys.trees) if len(logits) > len(params) else None
        return choose(logits, *columns, any_cut=any_cut, guesses=guesses).tolist()
    moved = [to_device(torch.from_numpy(column), logits.device) for column in columns]
    return sampling_device.choose(logits, *moved, any_cut=any_cut).tolist()


def token_logprobs(logits: Tensor, token_id: int, count: int) -> TokenLogprobs:
    """Log-probabilities of the model's own distribution (before temperature and cuts); logits [V]."""
    logp = torch.log_softmax(logits.double(), -1)
    top = torch.topk(logp, min(count, len(logp)))
    pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenLogprobs(token_id, float(logp[token_id]), pairs)
