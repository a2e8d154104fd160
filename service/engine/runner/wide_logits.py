"""Logits of a half-precision model on a GPU in float32, for the choice of a token.

Rounded to bfloat16, logits of 16 to 32 lie an eighth apart: two tokens tie in one step of many, and which of them is
chosen is then a matter of their ids. The product sums in float32 anyway; here the sums are handed on as they are.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn


def widen_logits(model: Any) -> bool:
    """Let the output layer give float32 where it is a plain layer of half precision on a GPU; says whether it does."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or "forward" in vars(head) or hasattr(head.weight, "to_local"):
        return False
    if not head.weight.is_cuda or head.weight.dtype not in (torch.bfloat16, torch.float16):
        return False
    head.forward = functools.partial(_forward, head)  # type: ignore[method-assign, assignment]
    return True


def _forward(head: nn.Linear, x: Tensor) -> Tensor:
    """[…, d] → float32 […, V]."""
    logits = _product(x.flatten(0, -2), head.weight.T).view(*x.shape[:-1], -1)
    return logits if head.bias is None else logits + head.bias


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b, out_dtype=torch.float32)
