"""From logits to tokens: one call for all rows of a step, keyed so that the grouping into steps does not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drafters import sampling_device
from drafters.sampling import choose, largest
from service.engine.request import SamplingParams, TokenLogprobs
from sparse_attn.host_values import to_device


@dataclass(frozen=True)
class RowKeys:
    """How the rows of logits are to be sampled.

    Attributes:
        params: of each request.
        counts: how many rows, one after another, are of each.
        positions: int64 [R], of the tokens to be chosen.
    """

    params: Sequence[SamplingParams]
    counts: Sequence[int]
    positions: np.ndarray


def sample(logits: Tensor, keys: RowKeys) -> list[int]:
    """The target's choice after each row; logits [R, V] → R token ids, with one synchronisation of the device."""
    params = keys.params
    if all(p.temperature == 0 for p in params):
        return largest(logits).tolist()
    columns = (
        np.repeat(np.array([p.temperature for p in params], dtype=np.float64), keys.counts),
        np.repeat(np.array([p.top_k for p in params], dtype=np.int64), keys.counts),
        np.repeat(np.array([p.top_p for p in params], dtype=np.float64), keys.counts),
        np.repeat(np.array([p.seed for p in params], dtype=np.int64), keys.counts),
        keys.positions,
    )
    any_cut = any(p.temperature and (p.top_k > 0 or p.top_p < 1) for p in params)
    if logits.is_cpu:
        return choose(logits, *columns, any_cut=any_cut).tolist()
    moved = [to_device(torch.from_numpy(column), logits.device) for column in columns]
    return sampling_device.choose(logits, *moved, any_cut=any_cut).tolist()


def token_logprobs(logits: Tensor, token_id: int, count: int) -> TokenLogprobs:
    """Log-probabilities of the model's own distribution (before temperature and cuts); logits [V]."""
    logp = torch.log_softmax(logits.double(), -1)
    top = torch.topk(logp, min(count, len(logp)))
    pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenLogprobs(token_id, float(logp[token_id]), pairs)
