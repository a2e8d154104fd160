"""RMS norms of a CPU model in one pass.

transformers writes a norm as six operations, each a call through torch and a pass over the rows. A decode step streams
its KV through the caches, so that the code of every such call comes from memory again: the nine norms of a model of
four layers are a twentieth of a step at 2K tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import torch
from torch import Tensor, nn

from sparse_attn.kernels import select_kernels
from sparse_attn.kernels.cpu.decoder import Norm
from sparse_attn.kernels.cpu.rows import rms_norm

logger = structlog.get_logger(__name__)

_EPS_NAMES = ("variance_epsilon", "eps")


def fuse_norms(model: nn.Module) -> int:
    """Let every float32 RMS norm on the CPU compute in one pass; rows do not depend on one another.

    A norm is known by what it computes: a module with one weight and an epsilon that gives `rms_norm` of a few sample
    rows, within float32's rounding, with its weight or (Gemma's) with one added to it. The modules keep their class,
    parameters and names; only the `forward` of each instance changes. Calling it again changes nothing.

    Returns:
        How many norms changed: 0 where the CPU kernels cannot be built.
    """
    if not select_kernels(torch.device("cpu"), torch.float32).row_invariant:
        return 0
    fused = 0
    for module in model.modules():
        eps = next((e for name in _EPS_NAMES if isinstance(e := getattr(module, name, None), float)), None)
        if eps is None or "forward" in vars(module) or (norm := _known_norm(module, eps)) is None:
            continue
        module.forward = _Fused(module, type(module).forward, norm)  # type: ignore[assignment]
        fused += 1
    return fused


def fused_norm(module: nn.Module) -> Norm | None:
    """What a norm computes whose forward `fuse_norms` changed; None for any other module."""
    forward = vars(module).get("forward")
    return forward.norm if isinstance(forward, _Fused) else None


class _Fused:
    """The forward of a norm in one pass."""

    def __init__(self, module: nn.Module, plain: Callable[..., Tensor], norm: Norm) -> None:
        self.norm = norm
        self._module, self._plain = module, plain

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or (
            torch.is_grad_enabled() and (x.requires_grad or self._module.weight.requires_grad)
        ):
            return self._plain(self._module, x)
        return rms_norm(x, self.norm.weight, self.norm.eps)


@torch.no_grad()
def _known_norm(module: nn.Module, eps: float) -> Norm | None:
    parameters = dict(module.named_parameters())
    weight = parameters.get("weight")
    if weight is None or len(parameters) > 1 or weight.dim() != 1:
        return None
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or hasattr(weight, "to_local"):
        return None
    sample = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0))
    sample *= torch.tensor([[1.0], [eps**0.5], [100.0]])  # the second row shows where eps is added
    try:
        given = module(sample)
    except (RuntimeError, TypeError, ValueError):  # takes something else
        return None
    for one in (weight, 1.0 + weight):
        if torch.allclose(given, rms_norm(sample, one, eps), rtol=1e-5, atol=1e-6):
            return Norm(one, eps)
    return None
