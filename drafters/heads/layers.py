"""A decoder layer for drafters, under transformers' names, so that weights go from and to the formats in use."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from drafters.errors import DrafterError

KINDS = ("llama", "qwen3")
"""Of decoder layers; a Qwen3 layer normalises queries and keys."""


def transformer_config(described: dict[str, Any]) -> PretrainedConfig:
    """transformers' configuration of decoder layers. Raises DrafterError for a kind that is not among `KINDS`."""
    kind = described.get("model_type", "llama")
    if kind not in KINDS:
        raise DrafterError(f"a trained drafter has layers of the kind {kind!r}; Folio knows {', '.join(KINDS)}")
    if described.get("hidden_act", "silu") != "silu":
        raise DrafterError(f"a trained drafter has the activation {described['hidden_act']!r}; Folio knows silu")
    rest = {key: value for key, value in described.items() if key != "model_type"}
    config = AutoConfig.for_model(kind, **rest)
    if getattr(config, "head_dim", None) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads
    return config


class RMSNorm(nn.Module):
    """x / rms(x) · weight."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), (x.shape[-1],), self.weight, self.epsilon)


class Rotary(nn.Module):
    """The angles of positions, by the rule that the configuration names."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self._angles: Any = LlamaRotaryEmbedding(config)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, [n, 1, head_dim], of positions int64 [n]."""
        x = torch.empty(0, dtype=torch.float32, device=positions.device)
        cos, sin = self._angles(x, positions[None])
        return cos[0][:, None], sin[0][:, None]


class Attention(nn.Module):
    """Projections, rotation and attention; the input of the projections is `inputs` hidden states wide."""

    def __init__(self, config: Any, inputs: int = 1) -> None:
        super().__init__()
        size, width = config.head_dim, inputs * config.hidden_size
        bias = bool(getattr(config, "attention_bias", False))
        self.heads, self.kv_heads, self.size = config.num_attention_heads, config.num_key_value_heads, size
        self.q_proj = nn.Linear(width, self.heads * size, bias=bias)
        self.k_proj = nn.Linear(width, self.kv_heads * size, bias=bias)
        self.v_proj = nn.Linear(width, self.kv_heads * size, bias=bias)
        self.o_proj = nn.Linear(self.heads * size, config.hidden_size, bias=bias)
        normed = config.model_type == "qwen3"
        self.q_norm = RMSNorm(size, config.rms_norm_eps) if normed else nn.Identity()
        self.k_norm = RMSNorm(size, config.rms_norm_eps) if normed else nn.Identity()

    def queries(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """[..., n, heads, size] of x [..., n, width]."""
        return rotate(self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, self.size))), angles)

    def keys_values(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Each [..., n, kv_heads, size]."""
        keys = self.k_norm(self.k_proj(x).unflatten(-1, (self.kv_heads, self.size)))
        return rotate(keys, angles), self.v_proj(x).unflatten(-1, (self.kv_heads, self.size))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """[..., n, hidden] of q [..., n, heads, size], k and v [..., s, kv_heads, size] and mask bool [n, s]."""
        q, k, v = (part.transpose(-3, -2) for part in (q, k, v))
        flat = q.dim() == 3
        if flat:
            q, k, v = q[None], k[None], v[None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        out = (out[0] if flat else out).transpose(-3, -2)
        return self.o_proj(out.flatten(-2))


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of x [..., n, heads, size] by cos and sin [n, 1, size]."""
    cos, sin = angles
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return (x * cos + turned * sin).to(x.dtype)


class MLP(nn.Module):
    """Gated, with SiLU; what it makes is `outputs` hidden states wide. What opens the gate may be another input."""

    def __init__(self, config: Any, outputs: int = 1) -> None:
        super().__init__()
        bias = bool(getattr(config, "mlp_bias", False))
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(config.intermediate_size, outputs * config.hidden_size, bias=bias)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x if gate is None else gate)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """Norms, attention and MLP; how they are put together is the drafter's affair. Their inputs and outputs are so many
    hidden states wide."""

    def __init__(self, config: Any, inputs: int = 1, outputs: int = 1) -> None:
        super().__init__()
        self.self_attn = Attention(config, inputs)
        self.mlp = MLP(config, outputs)
        self._outputs = outputs
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def after(self, residual: Tensor, attended: Tensor) -> Tensor:
        """What the layer makes of what its attention gave, [..., outputs · hidden]."""
        x = residual + attended
        out: Tensor = torch.cat([x] * self._outputs, -1) + self.mlp(self.post_attention_layernorm(x))
        return out


def causal(count: int, behind: int, window: int, device: torch.device) -> Tensor:
    """bool [count, behind + count]: the last `count` of all rows see themselves and the `window` - 1 before."""
    row = torch.arange(behind, behind + count, device=device)[:, None]
    column = torch.arange(behind + count, device=device)[None]
    return (column <= row) & (column > row - window)


def distance(own: Tensor, states: Tensor) -> Tensor:
    """How far a head's own states are from the target's, as EAGLE weighs it beside the cross-entropy."""
    return 10 * F.smooth_l1_loss(own, states)


class Unrolled:
    """Attention over the passes of training: the first causally, the later ones by each row to itself."""

    def __init__(self, attention: Attention, window: int) -> None:
        self._attention, self._window = attention, window
        self._passes: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """[B, N, hidden] of x [B, N, width]; the next pass may have fewer rows, the first of these."""
        attention, count = self._attention, x.shape[1]
        q = attention.queries(x, angles)
        self._passes.append(attention.keys_values(x, angles))
        passes = [(k[:, :count], v[:, :count]) for k, v in self._passes]
        mask = causal(count, 0, self._window, x.device)
        if len(passes) == 1:
            return attention.attend(q, *passes[0], mask)
        (keys, values), later = passes[0], passes[1:]
        q = q.unflatten(2, (attention.kv_heads, -1)) / math.sqrt(attention.size)
        scores = [torch.einsum("btkgd,bskd->btkgs", q, keys).masked_fill(~mask[:, None, None], -math.inf)]
        scores += [torch.einsum("btkgd,btkd->btkg", q, k)[..., None] for k, _ in later]
        first, *rest = torch.cat(scores, -1).softmax(-1).split([count] + [1] * len(later), -1)
        out = torch.einsum("btkgs,bskd->btkgd", first, values)
        for weight, (_, v) in zip(rest, later, strict=True):
            out = out + weight * v[:, :, :, None]
        return attention.o_proj(out.flatten(2))  # type: ignore[no-any-return]
