"""Linear layers and embeddings of a CPU model whose weights stay as they are stored (`sparse_attn.kernels.cpu.packed`).

They take and give float32, as the layers between them compute. A model's embedding and its output matrix may be one
weight; it is packed once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_attn.kernels.cpu.packed import PackedWeight, Products, linear, pack_tensor


class PackedLinear(nn.Module):
    """`nn.Linear` over a packed weight; a row of the result does not depend on the rows beside it."""

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed = packed
        self.in_features, self.out_features = packed.inner, packed.outer
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().contiguous(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, [self.packed], [self.bias])[0]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.packed.kind}"


class PackedEmbedding(nn.Module):
    """`nn.Embedding` over a packed weight; ``factor`` multiplies what is looked up (Gemma)."""

    def __init__(self, packed: PackedWeight, factor: float = 1.0) -> None:
        super().__init__()
        self.packed, self.factor = packed, factor
        self.num_embeddings, self.embedding_dim = packed.outer, packed.inner

    def forward(self, ids: Tensor) -> Tensor:
        found = self.packed.rows(ids)
        return found if self.factor == 1.0 else found * self.factor

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, kind={self.packed.kind}"


def can_be_packed(module: nn.Module) -> bool:
    """A linear layer or an embedding that nothing else (an adapter, a quantiser, several ranks) has taken."""
    if type(module) not in (nn.Linear, nn.Embedding) and not hasattr(module, "scalar_embed_scale"):
        return False
    weight: Any = module.weight
    return weight.dim() == 2 and weight.is_floating_point() and not hasattr(weight, "to_local")


def put_packed(model: nn.Module, name: str, packed: PackedWeight) -> None:
    """Replace the layer of this name, which `can_be_packed`, by one over a packed weight."""
    parent, _, last = name.rpartition(".")
    module: Any = model.get_submodule(name)
    if isinstance(module, nn.Embedding):
        factor = getattr(module, "scalar_embed_scale", 1.0)
        taken: nn.Module = PackedEmbedding(packed, float(factor))
    else:
        taken = PackedLinear(packed, module.bias)
    setattr(model.get_submodule(parent) if parent else model, last, taken)


def packed_layers(model: nn.Module) -> list[PackedLinear | PackedEmbedding]:
    """The layers of a model that have packed weights."""
    return [module for module in model.modules() if isinstance(module, PackedLinear | PackedEmbedding)]


def pack_model(model: nn.Module, kind: str, products: Products) -> None:
    """Pack every layer that can be, one after another so that few are held twice; all else becomes float32.

    Args:
        kind: BF16, F16 or INT8, to which the weights are rounded.
        products: what they shall be of (`sparse_attn.kernels.cpu.packed.products_with`).
    """
    shared: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if can_be_packed(module):
            shared.setdefault(module.weight.data_ptr(), []).append(name)  # type: ignore[operator, union-attr]
    for names in shared.values():
        weight: Any = model.get_submodule(names[0]).weight
        packed = pack_tensor(weight.detach(), kind, products=products)
        for name in names:
            put_packed(model, name, packed)
    with torch.no_grad():
        model.float()
