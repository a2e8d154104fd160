"""Q, K and V of any transformers decoder on a text: what calibration and the benchmarks look at.

Random Q and K have flat attention, which flatters or ruins every sparse method; these are real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from sparse_attn.kernels import select_kernels
from sparse_attn.kernels.operands import Rows

NAME = "folio_capture"


@dataclass(frozen=True)
class Captured:
    """One layer's attention input over a whole text, after RoPE.

    Attributes:
        q: [n, Hq, D]. k, v: [n, Hkv, D], unrepeated.
        scale: factor of q·k.
        window: sliding window in tokens, 0 for none.
    """

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    window: int = 0


@torch.inference_mode()
def capture(model: Any, token_ids: Sequence[int] | Tensor, layers: Sequence[int] | None = None) -> list[Captured]:
    """Run ``model`` once over ``token_ids`` [n] and keep q, k, v of the given layers (default: all).

    The model's own attention is put back afterwards. Memory: (Hq + 2 Hkv) * D numbers a token and layer.
    """
    kept: dict[int, Captured] = {}
    wanted = None if layers is None else set(layers)
    AttentionInterface.register(NAME, _attend_and_keep)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        ids = torch.as_tensor(token_ids, device=model.device)[None]
        positions = torch.arange(ids.shape[1], device=model.device)[None]
        model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1, kept=kept, wanted_layers=wanted)
    finally:
        model.set_attn_implementation(before)
    return [kept[layer] for layer in sorted(kept)]


def _attend_and_keep(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    kept: dict[int, Captured] | None = None,
    wanted_layers: set[int] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Dense causal attention of one text, remembering its input: query [1, Hq, n, D] → [1, n, Hq, D]."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    window = sliding_window or 0
    layer: int = module.layer_idx
    if kept is not None and (wanted_layers is None or layer in wanted_layers):
        kept[layer] = Captured(layer, q.contiguous(), k.contiguous(), v.contiguous(), scale, window)
    rows = Rows.of_sequence(q, k, v, scale, softcap=softcap or 0.0, window=window)
    out, _lse = select_kernels(q.device, q.dtype).ragged_attention(rows)
    return out[None], None
