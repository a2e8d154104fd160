"""Keys and values in int8: one scale per token and head, symmetric.

A scale a token costs 4 bytes beside head_dim bytes, and in return a token can be appended, copied or thrown away
without touching its neighbours in the page. The error of a channel is at most half a step, max|x| / 254.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127
SCALE_BYTES = 4  # of a float32


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] in a floating dtype → int8 [..., D] and its scale float32 [...]; x is about int8 * scale."""
    x = x.float()
    scale = x.abs().amax(-1) / LEVELS
    steps = x / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    return steps.round().clamp(-LEVELS, LEVELS).to(torch.int8), scale


def dequantize(x: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """int8 [..., D] and float32 [...] → [..., D]."""
    return (x.float() * scale[..., None]).to(dtype)
