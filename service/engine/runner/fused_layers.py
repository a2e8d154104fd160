"""All layers of a CPU model in one call, for decode steps and draft trees; or each in two halves around its attention.

A step of a small model takes less time in its products and its attention than between them, in Python and torch, and
a long prompt passes over memory a dozen times between two products. For models of the kinds in `FAMILIES` the layers
are run by `sparse_attn.kernels.cpu.decoder`, with the same operations and the same rounding as the modules: a forward
has the same bits either way. Where attention needs a plan (prompts, sparse policies, int8 pages) it is called between
the halves of a layer. Prompts of float32 weights are the modules', whose products are the library's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, SiLUActivation
from transformers.modeling_outputs import BaseModelOutputWithPast

from service.engine.runner.fused_norms import fused_norm
from service.engine.runner.hidden_states import TAPS, Seen, hooked
from service.engine.runner.packed_layers import PackedLinear
from service.engine.runner.row_invariance import MAX_ROWS
from sparse_attn.backend import paged_attention_forward
from sparse_attn.batch import AttnBatch
from sparse_attn.kernels import Kernels, select_kernels
from sparse_attn.kernels.cpu.decoder import Angles, Decoder, DecoderLayer, Norm, Projection
from sparse_attn.kernels.cpu.packed import PANEL, PackedWeight
from sparse_attn.kernels.cpu.rows import gate_mul

FAMILIES = (
    "LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model", "SmolLM3Model", "Phi3Model", "Gemma2Model",
    "Gemma3TextModel",
)  # fmt: skip
_WINDOW_EVERYWHERE = ("MistralDecoderLayer", "Phi3DecoderLayer")
_CAPPED = ("Gemma2DecoderLayer",)
"""Whose attention is told a soft cap; Gemma 3 has the attribute and makes no use of it."""
EXPECTED = ("use_cache", "input_ids", "position_ids", "attn")


def fuse_layers(model: Any) -> bool:
    """Let the body of a float32 CPU model run all its layers in one call where a batch allows it.

    Comes after `make_row_invariant` and `fuse_norms`, whose numbers it keeps. The modules keep their classes,
    parameters and names; the `forward` of the body and of each gated MLP changes (the latter so that both ways round
    alike). A hook on the body is called as before, one on a layer sends the forwards through the modules; deeper ones
    are not seen.

    Returns:
        Whether it did: not where the CPU kernels cannot be built, nor for a model that computes something else.
    """
    body: Any = getattr(model, "base_model", None)
    if not _kernels().row_invariant or type(body).__name__ not in FAMILIES:
        return False
    if "forward" in vars(body) or not all(map(_is_known, body.layers)):
        return False
    config, first = body.config, body.layers[0].self_attn
    kinds = _kinds_of_angles(body)
    decoder = Decoder(
        [_described(layer, config, kinds) for layer in body.layers],
        config.num_attention_heads,
        config.num_key_value_heads,
        first.head_dim,
    )
    for layer in body.layers:
        activation = _activation(layer.mlp)
        assert activation is not None  # `_is_known` looked
        layer.mlp.forward = functools.partial(_gated, layer.mlp, activation, type(layer.mlp).forward)
    body.forward = functools.partial(_forward, body, type(body).forward, decoder)
    setattr(body, TAPS, [])
    return True


def pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The `forward` of a layer that is skipped."""
    return hidden_states


def _kernels(backend: str = "auto") -> Kernels:
    return select_kernels(torch.device("cpu"), torch.float32, backend)


def _kinds_of_angles(body: Any) -> list[str]:
    """The types of layers, where each has its own angles (Gemma 3); else none."""
    return list(getattr(body.rotary_emb, "layer_types", ()))


def _is_known(layer: Any) -> bool:
    """A layer whose linear layers, norms and activation are all such as the kernels compute."""
    attention, mlp = layer.self_attn, layer.mlp
    linears = [module for part in (attention, mlp) for name, module in part.named_children() if name.endswith("_proj")]
    norms = [module for part in (layer, attention) for name, module in part.named_children() if name.endswith("norm")]
    taken = all(map(_is_taken, linears)) and len({isinstance(one, PackedLinear) for one in linears}) == 1
    return taken and all(map(fused_norm, norms)) and _activation(mlp) is not None and _parts_begin_panels(layer)


def _is_taken(linear: Any) -> bool:
    """One that the kernels multiply: an adapter, a quantiser or a share of several ranks is not."""
    if isinstance(linear, PackedLinear):
        return True
    return type(linear) is nn.Linear and "forward" in vars(linear) and linear.weight.is_contiguous()


def _activation(mlp: Any) -> str | None:
    """Of `sparse_attn.kernels.cpu.rows.ACTIVATIONS`; None for any other."""
    module = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
    if isinstance(module, GELUTanh):
        return "gelu_tanh"
    return "silu" if isinstance(module, nn.SiLU | SiLUActivation) else None


def _parts_begin_panels(layer: Any) -> bool:
    """Whether projections that stand in one matrix (Phi-3) can be taken apart."""
    attention = layer.self_attn
    together = getattr(attention, "qkv_proj", None)
    if not isinstance(together, PackedLinear):
        return True
    sizes = (attention.config.num_attention_heads, attention.config.num_key_value_heads)
    return (
        not any(heads * attention.head_dim % PANEL for heads in sizes) and not layer.mlp.down_proj.in_features % PANEL
    )


def _described(layer: Any, config: Any, kinds: list[str]) -> DecoderLayer:
    attention = layer.self_attn
    everywhere = config.sliding_window if type(layer).__name__ in _WINDOW_EVERYWHERE else None
    sandwiched = hasattr(layer, "pre_feedforward_layernorm")  # norms before and behind (Gemma)
    rotary = kinds.index(attention.layer_type) if kinds else 0
    return DecoderLayer(
        input_norm=_present(_norm(layer, "input_layernorm")),
        attended_norm=_norm(layer, "post_attention_layernorm") if sandwiched else None,
        mlp_norm=_present(_norm(layer, "pre_feedforward_layernorm" if sandwiched else "post_attention_layernorm")),
        gated_norm=_norm(layer, "post_feedforward_layernorm"),
        projections=_projections(attention, layer.mlp),
        q_norm=_norm(attention, "q_norm"),
        k_norm=_norm(attention, "k_norm"),
        scale=attention.scaling,
        softcap=(attention.attn_logit_softcapping or 0.0) if type(layer).__name__ in _CAPPED else 0.0,
        window=getattr(attention, "sliding_window", everywhere) or 0,
        rotary=rotary if getattr(attention, "use_rope", True) else None,
        activation=_activation(layer.mlp) or "silu",
    )


def _projections(attention: Any, mlp: Any) -> dict[str, Projection]:
    """By their names in `DecoderLayer`; several may be rows of one matrix."""
    found = {"o": _projection(attention.o_proj), "down": _projection(mlp.down_proj)}
    if hasattr(attention, "qkv_proj"):
        q, kv = (
            heads * attention.head_dim
            for heads in (attention.config.num_attention_heads, attention.config.num_key_value_heads)
        )
        found |= _taken_apart(attention.qkv_proj, {"q": q, "k": kv, "v": kv})
    else:
        found |= {name: _projection(getattr(attention, f"{name}_proj")) for name in "qkv"}
    if hasattr(mlp, "gate_up_proj"):
        return found | _taken_apart(mlp.gate_up_proj, dict.fromkeys(("gate", "up"), mlp.down_proj.in_features))
    return found | {name: _projection(getattr(mlp, f"{name}_proj")) for name in ("gate", "up")}


def _projection(linear: Any) -> Projection:
    return Projection(linear.packed if isinstance(linear, PackedLinear) else linear.weight, linear.bias)


def _taken_apart(linear: Any, sizes: dict[str, int]) -> dict[str, Projection]:
    whole, start, parts = _projection(linear), 0, {}
    for name, size in sizes.items():
        weight, bias = whole.weight, whole.bias
        part = weight.narrow(start, size) if isinstance(weight, PackedWeight) else weight[start : start + size]
        parts[name] = Projection(part, None if bias is None else bias[start : start + size])
        start += size
    return parts


def _norm(module: Any, name: str) -> Norm | None:
    norm = getattr(module, name, None)
    return None if norm is None else fused_norm(norm)


def _present(norm: Norm | None) -> Norm:
    assert norm is not None
    return norm


def _gated(mlp: Any, activation: str, plain: Callable[..., Tensor], x: Tensor) -> Tensor:
    if x.dtype != torch.float32 or torch.is_grad_enabled():
        return plain(mlp, x)
    if hasattr(mlp, "gate_up_proj"):
        gate, up = (part.contiguous() for part in mlp.gate_up_proj(x).chunk(2, dim=-1))
    else:
        gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    return mlp.down_proj(gate_mul(gate, up, activation))  # type: ignore[no-any-return]


def _forward(body: Any, plain: Callable[..., Any], decoder: Decoder, *args: Any, **kwargs: Any) -> Any:
    taps: list[Seen] = getattr(body, TAPS)
    chosen = None if args else _chosen(body, decoder, kwargs)
    if chosen is None:
        with ExitStack() as hooks:
            for seen in taps:
                hooks.enter_context(hooked(body.layers, seen))
            return plain(body, *args, **kwargs)
    batch: AttnBatch = kwargs["attn"]
    x = body.embed_tokens(kwargs["input_ids"])
    angles = _angles(body, x, kwargs["position_ids"]) if decoder.rotary else []
    alike = _attends_alike(batch)
    if alike:
        batch.kernels.add(_kernels(batch.backend).name)
    for run, end in _runs(chosen, len(body.layers), taps):
        if alike and run:
            decoder.run(x[0], angles, batch, run)
        elif run:
            _layer_by_layer(body, decoder, x, angles, batch, run)
        for seen in taps:
            if end in seen.layers:
                seen.states[end] = x[0].clone()
    return BaseModelOutputWithPast(last_hidden_state=body.norm(x))


def _runs(chosen: list[int], count: int, taps: Sequence[Seen]) -> list[tuple[list[int], int]]:
    """The chosen layers in runs, each with the number of the layer whose input it makes: those that are watched, and
    the end."""
    ends = sorted({count}.union(*(seen.layers for seen in taps)))
    starts = [0, *ends[:-1]]
    return [([i for i in chosen if start <= i < end], end) for start, end in zip(starts, ends, strict=True)]


def _layer_by_layer(
    body: Any, decoder: Decoder, x: Tensor, angles: Angles, batch: AttnBatch, chosen: list[int]
) -> None:
    """Run layers over x [1, T, hidden] in place, each in two halves around its attention."""
    for i in chosen:
        q, k, v = (part.transpose(0, 1)[None] for part in decoder.before(i, x[0], angles))
        layer, module = decoder.layers[i], body.layers[i].self_attn
        attended, _ = paged_attention_forward(
            module, q, k, v, None, scaling=layer.scale, sliding_window=layer.window, softcap=layer.softcap, attn=batch
        )
        decoder.after(i, x[0], attended[0].contiguous())


def _angles(body: Any, x: Tensor, position_ids: Tensor) -> Angles:
    made = [body.rotary_emb(x, position_ids, kind) for kind in _kinds_of_angles(body)]
    return [(cos[0].contiguous(), sin[0].contiguous()) for cos, sin in made or [body.rotary_emb(x, position_ids)]]


def _chosen(body: Any, decoder: Decoder, kwargs: dict[str, Any]) -> list[int] | None:
    """The layers that run, if the kernels can serve this call; None if it is the modules' own."""
    batch = kwargs.get("attn")
    if batch is None or torch.is_grad_enabled() or kwargs.get("use_cache"):
        return None
    if len(batch.positions) > MAX_ROWS and not decoder.packed:  # which is prefill, by the library's product
        return None
    if any(value is not None for name, value in kwargs.items() if name not in EXPECTED):
        return None
    chosen = []
    for i, layer in enumerate(body.layers):
        own = vars(layer).get("forward")
        if own is pass_on:
            continue
        if own is not None or layer._forward_hooks or layer._forward_pre_hooks:
            return None
        chosen.append(i)
    return chosen


def _attends_alike(batch: AttnBatch) -> bool:
    """Whether attention is the same in all layers and needs no plan, so that all can run in one call."""
    if batch.policies is not None or batch.earlier is not None or len(batch.tables) > 1:
        return False
    if batch.needed is not None:  # a prompt's rows: most are spared the last layer's attention
        return False
    if batch.ends_at is not None or batch.instead is not None or batch.selection is not None:
        return False
    return batch.pool.dtype in (torch.float32, torch.bfloat16) and _kernels(batch.backend).whole is None
