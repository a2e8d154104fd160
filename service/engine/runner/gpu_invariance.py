"""A forward on a GPU in which no row's bits depend on how many rows run together, so that drafting changes no token.

Libraries for a GPU choose kernels by the shape of a product, and torch cuts the mean of a norm by the number of rows.
Here products and norms of the models of `fused_gpu_layers.FAMILIES` are Triton's with one order of summation, attention
is `sparse_attn.kernels.triton.invariant`, and every forward goes through the modules: the fused layers, which take some
forwards only, round their activations otherwise. What is left to torch is elementwise.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from service.engine.runner.fused_gpu_layers import FAMILIES

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def why_not_invariant(model: Any) -> str | None:
    """What keeps a model from being made invariant, in words; None where nothing does."""
    body = getattr(model, "base_model", None)
    if type(body).__name__ not in FAMILIES:
        return f"it is a {type(model).__name__}, and those of Llama's, Mistral's and Qwen's kind alone are known"
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and hasattr(weight, "to_local"):
            return "several processes share it"
        if hasattr(module, "in_features") and (type(module) is not nn.Linear or weight.dtype not in DTYPES):  # type: ignore[union-attr]
            return f"{name} is no plain layer of half precision or float32"
    return None


def make_gpu_invariant(model: Any) -> None:
    """Give the products and norms of a model kernels of one order; only the `forward` of instances changes.

    The output layer gives float32, as `wide_logits` has it. Only where `why_not_invariant` finds nothing.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is nn.Linear:
            dtype = torch.float32 if module is head else None
            module.forward = functools.partial(_linear, module, dtype)  # type: ignore[method-assign]
        elif hasattr(module, "variance_epsilon"):
            module.forward = functools.partial(_norm, module)


def _linear(layer: nn.Linear, dtype: torch.dtype | None, x: Tensor) -> Tensor:
    from sparse_attn.kernels.triton.linear import linear

    return linear(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias, dtype).view(*x.shape[:-1], -1)


def _norm(norm: Any, x: Tensor) -> Tensor:
    from sparse_attn.kernels.triton.layers import add_rms_norm

    return add_rms_norm(x.reshape(-1, x.shape[-1]), None, norm.weight, norm.variance_epsilon)[1].view(x.shape)
