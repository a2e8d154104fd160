"""Keys and values in int8: one scale per token and head, symmetric.

A scale a token costs 2 bytes beside head_dim bytes, and in return a token can be appended, copied or thrown away
without touching its neighbours in the page. Codes are made for the scale as it is kept, in float16, so its rounding
adds no error: that of a channel is at most half a step, max|x| / 254.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127
SCALE = torch.float16
LARGEST_SCALE = torch.finfo(SCALE).max
HALF_STEP = 0.5 * (1 + 2**-16)  # how far a key may lie from its code, in codes; the excess covers float32's rounding


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] in a floating dtype → int8 [..., D] and its scale float16 [...]; x is about int8 * scale."""
    x = x.float()
    scale = (x.abs().amax(-1) / LEVELS).clamp(max=LARGEST_SCALE).to(SCALE)
    steps = x / scale.float().clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    return steps.round().clamp(-LEVELS, LEVELS).to(torch.int8), scale


def dequantize(x: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """int8 [..., D] and float16 [...] → [..., D]."""
    return (x.float() * scale[..., None]).to(dtype)
