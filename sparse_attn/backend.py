"""The one attention function of every model and every mode, registered with transformers.

transformers calls it once a layer with q, k, v after RoPE and passes through the keyword ``attn=AttnBatch(...)``
that the model runner gave to ``model(...)``. It writes K and V into the pages, attends the new tokens to the paged
context and to one another, and merges the two parts by log-sum-exp.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from sparse_attn.batch import AttnBatch, EarlierNodes
from sparse_attn.blocks import BlockIndex
from sparse_attn.dense import merge_states
from sparse_attn.errors import UnsupportedModelFeature
from sparse_attn.kernels import Kernels, select_kernels
from sparse_attn.kv_pool import KVShape
from sparse_attn.rows import SequenceRows

NAME = "folio_paged"
_PROBE = "folio_probe"

# What transformers or a model may pass to an attention function without changing what it computes here.
_HARMLESS = {
    "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "is_causal",
    "position_embeddings", "return_dict", "num_items_in_batch", "layer_idx",
}  # fmt: skip


def paged_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    attn: AttnBatch | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer over one ragged batch.

    Args:
        module: the attention layer; ``layer_idx`` picks its pages.
        query: [1, Hq, T, D]. key, value: [1, Hkv, T, D], unrepeated, after RoPE.
        attention_mask: always None: causality, windows and trees are this function's own.
        scaling: factor of q·k; head_dim**-0.5 where the model gives none.
        sliding_window, softcap: honoured; None or 0 means none.
        attn: what the model runner knows of the batch.

    Returns:
        ([1, T, Hq, D], None).

    Raises:
        UnsupportedModelFeature: an argument that would change the result and that no kernel computes.
    """
    if attn is None:
        raise UnsupportedModelFeature(f"the attention {NAME!r} needs attn=AttnBatch(...) in the call of the model")
    _refuse_unknown(other, attention_mask, dropout)
    layer: int = module.layer_idx  # type: ignore[assignment]
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    window = sliding_window or 0
    kernels = select_kernels(q.device, q.dtype)
    attn.kernels.add(kernels.name)

    common = {"scale": scale, "softcap": softcap or 0.0, "window": window}
    if attn.earlier is not None:
        out = _attend_tree(kernels, attn, attn.earlier, layer, q, k, v, common)
    elif attn.policies is None:
        out = _attend(kernels, attn, layer, q, k, v, None, common)
    else:
        out = torch.empty_like(q)
        for s, policy in enumerate(attn.policies):
            rows, one = attn.rows(s), attn.select(s)
            index = None
            if policy is not None:
                index = policy.plan(_sequence_rows(one, layer, q[rows], k[rows], scale, window))
            out[rows] = _attend(kernels, one, layer, q[rows], k[rows], v[rows], index, common)
    attn.pool.write(layer, attn.slot_mapping, k, v)
    return out.unsqueeze(0), None


def _attend(
    kernels: Kernels,
    attn: AttnBatch,
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: BlockIndex | None,
    common: dict[str, Any],
) -> torch.Tensor:
    """New tokens over the paged context and over one another; q [T,Hq,D], k, v [T,Hkv,D] → [T,Hq,D]."""
    return kernels.attention(
        q,
        k,
        v,
        attn.pool.keys[layer],
        attn.pool.values[layer],
        attn.block_tables,
        attn.context_lens,
        attn.cu_seqlens_q,
        positions=attn.positions,
        tree_masks=attn.tree_masks,
        index=index,
        **common,
    )[0]


def _sequence_rows(
    one: AttnBatch, layer: int, q: torch.Tensor, k: torch.Tensor, scale: float, window: int
) -> SequenceRows:
    """What a policy sees of the only sequence of a batch."""
    tree_mask = one.tree_masks[0] if one.tree_masks is not None else None
    return SequenceRows(
        q,
        k,
        scale,
        context_len=int(one.context_lens[0]),
        key_pages=one.pool.keys[layer],
        block_table=one.block_tables[0],
        window=window,
        positions=one.positions,
        tree_mask=tree_mask,
        stats=one.pool.stats,
        layer=layer,
    )


def _attend_tree(
    kernels: Kernels,
    attn: AttnBatch,
    earlier: EarlierNodes,
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    common: dict[str, Any],
) -> torch.Tensor:
    """New tree nodes over the earlier ones, whose keys are read from their slots, and over one another.

    The earlier nodes get queries of zero, whose results are dropped: with a few dozen nodes that is cheaper than a
    kernel of its own.
    """
    pool, (new, known) = attn.pool, earlier.visible.shape
    old_k, old_v = pool.read(layer, earlier.slots)
    mask = torch.ones(known + new, known + new, dtype=torch.bool, device=q.device).tril()
    mask[known:, :known] = earlier.visible
    mask[known:, known:] = (
        attn.tree_masks[0] if attn.tree_masks and attn.tree_masks[0] is not None else mask[:new, :new]
    )
    padded = torch.cat([q.new_zeros(known, *q.shape[1:]), q])
    bounds = torch.tensor([0, known + new], dtype=torch.int32, device=q.device)
    new_part = kernels.ragged_attention(
        padded,
        torch.cat([old_k, k]),
        torch.cat([old_v, v]),
        bounds,
        tree_masks=[mask],
        positions=torch.cat([earlier.positions, attn.positions]),
        **common,
    )
    context = kernels.paged_attention(
        q,
        pool.keys[layer],
        pool.values[layer],
        attn.block_tables,
        attn.context_lens,
        attn.cu_seqlens_q,
        positions=attn.positions,
        **common,
    )
    return merge_states(*context, *(part[known:] for part in new_part))[0]


def _refuse_unknown(other: dict[str, Any], attention_mask: torch.Tensor | None, dropout: float) -> None:
    if attention_mask is not None:
        raise UnsupportedModelFeature("the model passes its own attention mask, which paged attention cannot honour")
    if dropout:
        raise UnsupportedModelFeature("the model is in training mode (attention dropout); call model.eval()")
    for name, argument in other.items():
        if argument is not None and name not in _HARMLESS:
            raise UnsupportedModelFeature(
                f"the model passes {name!r} to attention, which the paged kernels do not know"
            )


def attach(model: Any) -> KVShape:
    """Give a transformers model the paged attention, and tell the shape of its KV.

    The shape is seen in a forward of one token, not read from the configuration, whose field names differ.

    Raises:
        UnsupportedModelFeature: the model does not take its attention from the registry, its layers differ in KV
            shape, or it asks for something that the kernels do not compute; the message names the model and it.
    """
    seen: dict[int, tuple[int, int, int]] = {}

    def probe(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **other: Any,
    ) -> tuple[torch.Tensor, None]:
        _refuse_unknown(other, attention_mask, dropout)
        seen[int(module.layer_idx)] = (key.shape[1], key.shape[3], value.shape[3])  # type: ignore[arg-type]
        return torch.zeros_like(query[..., : value.shape[3]]).transpose(1, 2), None

    AttentionInterface.register(_PROBE, probe)
    AttentionInterface.register(NAME, paged_attention_forward)
    kind = type(model).__name__
    one = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    model.set_attn_implementation(_PROBE)
    with torch.inference_mode():
        model(input_ids=one, position_ids=one, use_cache=False)
    model.set_attn_implementation(NAME)

    layers = getattr(model.config, "num_hidden_layers", len(seen))
    if sorted(seen) != list(range(layers)):
        missing = sorted(set(range(layers)) - set(seen))
        raise UnsupportedModelFeature(
            f"{kind} has layers without paged attention: {missing[:8] if seen else 'all of them'}; models with "
            "recurrent or linear-attention layers, or with an attention of their own, are not supported"
        )
    if len(set(seen.values())) > 1:
        raise UnsupportedModelFeature(f"{kind} has layers of different KV shapes: {sorted(set(seen.values()))}")
    heads, key_dim, value_dim = seen[0]
    if key_dim != value_dim:
        raise UnsupportedModelFeature(f"{kind} has keys of width {key_dim} and values of width {value_dim} (MLA)")
    return KVShape(layers, heads, key_dim)
