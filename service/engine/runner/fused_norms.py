"""RMS norms of a CPU model in one pass.

transformers writes a norm as six operations, each a call through torch and a pass over the rows. A decode step streams
its KV through the caches, so that the code of every such call comes from memory again: the nine norms of a model of
four layers are a twentieth of a step at 2K tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import structlog
import torch
from torch import Tensor, nn

from sparse_attn.kernels import select_kernels
from sparse_attn.kernels.cpu.rows import rms_norm

logger = structlog.get_logger(__name__)

_EPS_NAMES = ("variance_epsilon", "eps")


def fuse_norms(model: nn.Module) -> int:
    """Let every float32 RMS norm on the CPU compute in one pass; rows do not depend on one another.

    A norm is known by what it computes: a module with one weight and an epsilon that gives `rms_norm` of a few sample
    rows, within float32's rounding. The modules keep their class, parameters and names; only the `forward` of each
    instance changes. Calling it again changes nothing.

    Returns:
        How many norms changed: 0 where the CPU kernels cannot be built.
    """
    if not select_kernels(torch.device("cpu"), torch.float32).row_invariant:
        return 0
    fused = 0
    for module in model.modules():
        eps = next((e for name in _EPS_NAMES if isinstance(e := getattr(module, name, None), float)), None)
        if eps is None or "forward" in vars(module) or not _is_rms_norm(module, eps):
            continue
        module.forward = functools.partial(_forward, module, type(module).forward, eps)  # type: ignore[method-assign]
        fused += 1
    return fused


@torch.no_grad()
def _is_rms_norm(module: nn.Module, eps: float) -> bool:
    parameters = dict(module.named_parameters())
    weight = parameters.get("weight")
    if weight is None or len(parameters) > 1 or weight.dim() != 1:
        return False
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or hasattr(weight, "to_local"):
        return False
    sample = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0))
    sample *= torch.tensor([[1.0], [eps**0.5], [100.0]])  # the second row shows where eps is added
    try:
        given = module(sample)
    except (RuntimeError, TypeError, ValueError):  # takes something else
        return False
    return bool(torch.allclose(given, rms_norm(sample, weight, eps), rtol=1e-5, atol=1e-6))


def _forward(module: nn.Module, plain: Callable[..., Tensor], eps: float, x: Tensor) -> Tensor:
    if x.dtype != torch.float32 or (torch.is_grad_enabled() and (x.requires_grad or module.weight.requires_grad)):
        return plain(module, x)
    return rms_norm(x, module.weight, eps)  # type: ignore[arg-type]
