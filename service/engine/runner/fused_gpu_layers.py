"""All layers of a model on a GPU in a dozen launches each, for decode steps and draft trees.

A layer of transformers is some forty launches, most of them of a few kilobytes: a decode step takes longer to start
them than to read the weights, and a graph of them has a thousand nodes. Models of Llama's kind (`FAMILIES`) go
through `sparse_attn.kernels.triton.layers` between their products, which stay the modules' own, whatever quantiser or
adapter made them. Where attention is planned by a policy, or rows are many, the forward is the modules'.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.modeling_outputs import BaseModelOutputWithPast

from service.engine.runner.fused_layers import EXPECTED, pass_on
from sparse_attn.backend import attend_in_pages
from sparse_attn.batch import AttnBatch
from sparse_attn.kernels import Kernels, select_kernels

FAMILIES = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model", "SmolLM3Model")
MAX_ROWS = 2048
"""More are a prompt's, whose products are long and whose attention is other people's."""


@dataclass(frozen=True)
class _Layer:
    """A layer's modules and numbers.

    Attributes:
        norms: of queries and keys: weights and epsilon; None for none.
        window: 0 for none. rotary: whether it rotates.
    """

    module: Any
    norms: tuple[Tensor, Tensor, float] | None
    scale: float
    window: int
    rotary: bool


def fuse_gpu_layers(model: Any) -> bool:
    """Let the body of a model run its decode steps through fused kernels; says whether it is of a kind that can.

    The modules keep their classes, parameters and names; only the `forward` of the body changes. A hook on a layer
    sends the forwards through the modules.
    """
    body: Any = getattr(model, "base_model", None)
    if type(body).__name__ not in FAMILIES or "forward" in vars(body) or not all(map(_is_known, body.layers)):
        return False
    layers = [_described(layer, body.config) for layer in body.layers]
    body.forward = functools.partial(_forward, body, type(body).forward, layers)
    return True


def _is_known(layer: Any) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [norm for name in ("q_norm", "k_norm") if (norm := getattr(attention, name, None)) is not None]
    parts = [getattr(mlp, f"{name}_proj", None) for name in ("gate", "up", "down")]
    if any(hasattr(weight, "to_local") for weight in layer.parameters()):  # a share of several ranks
        return False
    plain = all(hasattr(norm, "variance_epsilon") and norm.weight.dim() == 1 for norm in norms)
    return plain and all(parts) and isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)


def _described(layer: Any, config: Any) -> _Layer:
    attention = layer.self_attn
    norms = None
    if getattr(attention, "q_norm", None) is not None:
        norms = attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.variance_epsilon
    everywhere = config.sliding_window if type(layer).__name__ == "MistralDecoderLayer" else None
    window = getattr(attention, "sliding_window", everywhere) or 0
    return _Layer(layer, norms, attention.scaling, window, bool(getattr(attention, "use_rope", True)))


def _forward(body: Any, plain: Callable[..., Any], layers: list[_Layer], *args: Any, **kwargs: Any) -> Any:
    batch: AttnBatch | None = kwargs.get("attn")
    kernels = _kernels(body, batch)
    if args or batch is None or kernels is None or not _takes(batch, layers, kwargs):
        return plain(body, *args, **kwargs)
    x = body.embed_tokens(kwargs["input_ids"])
    angles = tuple(part[0] for part in body.rotary_emb(x, kwargs["position_ids"]))
    batch.kernels.add(f"{kernels.name}+fused")
    return BaseModelOutputWithPast(last_hidden_state=_run(body, layers, batch, kernels, x[0], angles)[None])


def _kernels(body: Any, batch: AttnBatch | None) -> Kernels | None:
    if batch is None or torch.is_grad_enabled():
        return None
    weight = body.embed_tokens.weight
    kernels = select_kernels(weight.device, weight.dtype, batch.backend)
    return kernels if kernels.in_pages is not None and not kernels.row_invariant else None


def _takes(batch: AttnBatch, layers: list[_Layer], kwargs: dict[str, Any]) -> bool:
    """Whether every row of the batch sees everything, in pages of all heads, and nobody watches a layer."""
    if batch.policies is not None or batch.earlier is not None or batch.needed is not None or len(batch.tables) > 1:
        return False
    if batch.instead is not None:  # who needs to be called between the layers' products
        return False
    if len(batch.positions) > MAX_ROWS or not (batch.decode_only or _no_chunk(batch)):
        return False
    if kwargs.get("use_cache") or any(v is not None for name, v in kwargs.items() if name not in EXPECTED):
        return False
    return not any(one.module._forward_hooks or one.module._forward_pre_hooks for one in layers)


def _no_chunk(batch: AttnBatch) -> bool:
    from sparse_attn.kernels.work import PREFILL_ROWS

    return all(end - begin < PREFILL_ROWS for begin, end in zip(batch.bounds, batch.bounds[1:], strict=False))


def _run(body: Any, layers: list[_Layer], batch: AttnBatch, kernels: Kernels, x: Tensor, angles: Any) -> Tensor:
    """The hidden states [T, d] behind the last norm, of embeddings [T, d]."""
    from sparse_attn.kernels.triton.layers import add_rms_norm, place, silu_mul

    [group], [tables] = batch.pool.groups, batch.tables
    delta: Tensor | None = None
    for i, one in enumerate(layers):
        layer = one.module
        if vars(layer).get("forward") is pass_on:
            continue
        attention, mlp = layer.self_attn, layer.mlp
        x, h = add_rms_norm(x, delta, layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon)
        q, k, v = attention.q_proj(h), attention.k_proj(h), attention.v_proj(h)
        pages = group.pages(i, tables.block_tables)
        scales = (pages.k_scale, pages.v_scale) if pages.k_scale is not None and pages.v_scale is not None else None
        turned = place(q, k, v, angles if one.rotary else None, one.norms, (pages.k, pages.v), tables.slot_mapping,
                       scales)  # fmt: skip
        if group.stats is not None:
            group.stats.update(i, pages.k, tables.slot_mapping, pages.k_scale)
        heads = pages.k.shape[1]
        rows = batch.operands(
            turned, k.unflatten(-1, (heads, -1)), v.unflatten(-1, (heads, -1)), one.scale, 0.0, one.window
        )
        attended = attention.o_proj(attend_in_pages(kernels, batch, i, pages, rows).flatten(1))
        norm = layer.post_attention_layernorm
        x, h = add_rms_norm(x, attended, norm.weight, norm.variance_epsilon)
        delta = mlp.down_proj(silu_mul(mlp.gate_proj(h), mlp.up_proj(h)))
    return add_rms_norm(x, delta, body.norm.weight, body.norm.variance_epsilon)[1]
