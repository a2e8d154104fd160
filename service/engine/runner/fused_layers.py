"""All layers of a CPU model in one call, for decode steps and draft trees; or each in two halves around its attention.

A step of a small model takes less time in its products and its attention than between them, in Python and torch, and
a long prompt passes over memory a dozen times between two products. For models of Llama's kind (`FAMILIES`) the layers
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
from transformers.activations import SiLUActivation
from transformers.modeling_outputs import BaseModelOutputWithPast

from service.engine.runner.hidden_states import TAPS, Seen, hooked
from service.engine.runner.packed_layers import PackedLinear
from service.engine.runner.row_invariance import MAX_ROWS
from sparse_attn.backend import paged_attention_forward
from sparse_attn.batch import AttnBatch
from sparse_attn.kernels import Kernels, select_kernels
from sparse_attn.kernels.cpu.decoder import Decoder, DecoderLayer, Norm, Projection
from sparse_attn.kernels.cpu.packed import PackedWeight
from sparse_attn.kernels.cpu.rows import silu_mul

FAMILIES = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model", "SmolLM3Model")
_EXPECTED = ("use_cache", "input_ids", "position_ids", "attn")


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
    decoder = Decoder(
        [_described(layer, config) for layer in body.layers],
        config.num_attention_heads,
        config.num_key_value_heads,
        first.head_dim,
    )
    for layer in body.layers:
        layer.mlp.forward = functools.partial(_gated, layer.mlp, type(layer.mlp).forward)
    body.forward = functools.partial(_forward, body, type(body).forward, decoder)
    setattr(body, TAPS, [])
    return True


def pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The `forward` of a layer that is skipped."""
    return hidden_states


def _kernels(backend: str = "auto") -> Kernels:
    return select_kernels(torch.device("cpu"), torch.float32, backend)


def _is_known(layer: Any) -> bool:
    """A layer whose linear layers, norms and activation are all such as the kernels compute."""
    attention, mlp = layer.self_attn, layer.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [norm for name in ("q_norm", "k_norm") if (norm := getattr(attention, name, None)) is not None]
    taken = all(map(_is_taken, linears)) and len({isinstance(one, PackedLinear) for one in linears}) == 1
    return taken and all("forward" in vars(norm) for norm in norms) and isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)


def _is_taken(linear: Any) -> bool:
    """One that the kernels multiply: an adapter, a quantiser or a share of several ranks is not."""
    if isinstance(linear, PackedLinear):
        return True
    return type(linear) is nn.Linear and "forward" in vars(linear) and linear.weight.is_contiguous()


def _described(layer: Any, config: Any) -> DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    modules = {name: getattr(attention, f"{name}_proj") for name in "qkvo"}
    modules |= {name: getattr(mlp, f"{name}_proj") for name in ("gate", "up", "down")}
    everywhere = config.sliding_window if type(layer).__name__ == "MistralDecoderLayer" else None
    return DecoderLayer(
        input_norm=_norm(layer.input_layernorm),
        post_norm=_norm(layer.post_attention_layernorm),
        projections={name: Projection(_weight(one), one.bias) for name, one in modules.items()},
        q_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        k_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        scale=attention.scaling,
        window=getattr(attention, "sliding_window", everywhere) or 0,
        rotary=bool(getattr(attention, "use_rope", True)),
    )


def _weight(linear: Any) -> Tensor | PackedWeight:
    return linear.packed if isinstance(linear, PackedLinear) else linear.weight


def _norm(module: Any) -> Norm:
    return Norm(module.weight, module.variance_epsilon)


def _gated(mlp: Any, plain: Callable[..., Tensor], x: Tensor) -> Tensor:
    if x.dtype != torch.float32 or torch.is_grad_enabled():
        return plain(mlp, x)
    return mlp.down_proj(silu_mul(mlp.gate_proj(x), mlp.up_proj(x)))  # type: ignore[no-any-return]


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
    cos = sin = None
    if decoder.rotary:
        cos, sin = (part[0].contiguous() for part in body.rotary_emb(x, kwargs["position_ids"]))
    alike = _attends_alike(batch)
    if alike:
        batch.kernels.add(_kernels(batch.backend).name)
    for run, seen_next in _runs(chosen, len(body.layers), taps):
        if alike and run:
            decoder.run(x[0], cos, sin, batch, run)
        elif run:
            _layer_by_layer(body, decoder, x, cos, sin, batch, run)
        for seen in taps:
            if seen_next in seen.layers:
                seen.states[seen_next] = x[0].clone()
    return BaseModelOutputWithPast(last_hidden_state=body.norm(x))


def _runs(chosen: list[int], count: int, taps: Sequence[Seen]) -> list[tuple[list[int], int]]:
    """The chosen layers in runs, each with the number of the layer whose input it makes: those that are watched, and
    the end."""
    ends = sorted({count}.union(*(seen.layers for seen in taps)))
    starts = [0, *ends[:-1]]
    return [([i for i in chosen if start <= i < end], end) for start, end in zip(starts, ends, strict=True)]


def _layer_by_layer(
    body: Any, decoder: Decoder, x: Tensor, cos: Tensor | None, sin: Tensor | None, batch: AttnBatch, chosen: list[int]
) -> None:
    """Run layers over x [1, T, hidden] in place, each in two halves around its attention."""
    for i in chosen:
        q, k, v = (part.transpose(0, 1)[None] for part in decoder.before(i, x[0], cos, sin))
        layer, module = decoder.layers[i], body.layers[i].self_attn
        attended, _ = paged_attention_forward(
            module, q, k, v, None, scaling=layer.scale, sliding_window=layer.window, attn=batch
        )
        decoder.after(i, x[0], attended[0].contiguous())


def _chosen(body: Any, decoder: Decoder, kwargs: dict[str, Any]) -> list[int] | None:
    """The layers that run, if the kernels can serve this call; None if it is the modules' own."""
    batch = kwargs.get("attn")
    if batch is None or torch.is_grad_enabled() or kwargs.get("use_cache"):
        return None
    if len(batch.positions) > MAX_ROWS and not decoder.packed:  # which is prefill, by the library's product
        return None
    if any(value is not None for name, value in kwargs.items() if name not in _EXPECTED):
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
    return batch.pool.dtype in (torch.float32, torch.bfloat16) and _kernels(batch.backend).whole is None
