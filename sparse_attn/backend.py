"""The one attention function of every model and every mode, registered with transformers.

transformers calls it once a layer with q, k, v after RoPE and passes through the keyword ``attn=AttnBatch(...)``
that the model runner gave to ``model(...)``. It writes K and V into the pages; then it plans which keys each row
visits, attends the new tokens to the paged context and to one another, and merges the two by log-sum-exp (within a
kernel, but for a tree that grows over several forwards).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import AttentionInterface

from sparse_attn.batch import AttnBatch, ForwardEnded
from sparse_attn.blocks import BlockIndex
from sparse_attn.errors import UnsupportedModelFeature
from sparse_attn.kernels import Kernels, select_kernels
from sparse_attn.kernels.dense import merge_states
from sparse_attn.kernels.operands import Pages, Rows, State
from sparse_attn.kernels.whole import attend_whole
from sparse_attn.kv.head_layout import query_heads
from sparse_attn.kv.pool import KVShape
from sparse_attn.plan.forward_plan import Part, plan_forward

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
        ForwardEnded: this was the last layer that the batch is for.
    """
    if attn is None:
        raise UnsupportedModelFeature(f"the attention {NAME!r} needs attn=AttnBatch(...) in the call of the model")
    _refuse_unknown(other, attention_mask, dropout)
    layer: int = module.layer_idx  # type: ignore[assignment]
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    attend = attend_layer if attn.instead is None else attn.instead
    return attend(attn, layer, q, k, v, scale, softcap or 0.0, sliding_window or 0).unsqueeze(0), None


def attend_layer(
    attn: AttnBatch,
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    softcap: float,
    window: int,
) -> torch.Tensor:
    """Write K and V [T, Hkv, D] of a layer into the pages and attend q [T, Hq, D] → [T, Hq, D].

    Raises:
        ForwardEnded: this was the last layer that the batch is for.
    """
    kernels = select_kernels(q.device, q.dtype, attn.backend)
    attn.kernels.add(kernels.name)
    new = attn.pool.encode(k, v)
    for group, tables in zip(attn.pool.groups, attn.tables, strict=True):
        group.write(layer, tables.slot_mapping, new)
    if layer == attn.ends_at:
        raise ForwardEnded

    rows = attn.operands(q, new.k, new.v, scale, softcap, window)
    parts = plan_forward(attn, layer, rows)
    if len(parts) == 1 and parts[0].rows is rows:
        return _attend(kernels, parts[0], layer)
    out = torch.empty_like(q) if attn.needed is None else torch.zeros_like(q)  # some rows may be in no part
    for part in parts:
        out[part.at] = _attend(kernels, part, layer)
    return out


def _attend(kernels: Kernels, part: Part, layer: int) -> torch.Tensor:
    """The part's rows over their contexts in pages and over one another, a head group at a time: [n, Hq, D]."""
    groups, rows = part.batch.pool.groups, part.rows
    present = [number for number, group in enumerate(groups) if group.heads[layer]]
    if len(present) == 1:
        return _attend_group(kernels, part, layer, present[0], rows, part.index)
    out, num_kv_heads = torch.empty_like(rows.q), rows.k.shape[1]
    for number in present:
        own = groups[number].heads[layer]
        index = part.index.take_heads(own, num_kv_heads) if part.index is not None else None
        queries = query_heads(own, rows.q.shape[1] // num_kv_heads)
        out[:, queries] = _attend_group(kernels, part, layer, number, rows.take_heads(own), index)
    return out


def _attend_group(
    kernels: Kernels, part: Part, layer: int, number: int, rows: Rows, index: BlockIndex | None
) -> torch.Tensor:
    """As `_attend` for one head group, of whose heads rows and index are."""
    pages = part.batch.pool.groups[number].pages(layer, part.batch.tables[number].block_tables)
    if part.batch.selection is not None:
        return attend_in_pages(kernels, part.batch, layer, pages, rows)
    if part.batch.earlier is not None:
        rows = replace(rows, skip=None)  # guesses alone are attended in parts
        past = kernels.paged_attention(pages, rows, index.split()[0] if index is not None else None)
        return merge_states(*past, *_attend_tree(kernels, part.batch, layer, number, rows))[0]
    if kernels.whole is not None and index is None and rows.tree_masks is None and rows.skip is None:
        out = attend_whole(kernels.whole, pages, rows)
        if out is not None:
            return out
    if kernels.in_pages is not None and index is None:
        return kernels.in_pages(pages, rows)
    return kernels.attention(pages, rows, index)[0]


def attend_in_pages(kernels: Kernels, batch: AttnBatch, layer: int, pages: Pages, rows: Rows) -> torch.Tensor:
    """Rows of a batch of one head group over all pages, or over those that its captured step selects: [T, Hq, D]."""
    assert kernels.in_pages is not None
    selection = batch.selection
    if selection is None or not selection.selects(layer, rows.window):
        return kernels.in_pages(pages, rows)
    return selection.attend(layer, pages, batch.pool.groups[0].stats, rows)


def _attend_tree(kernels: Kernels, attn: AttnBatch, layer: int, number: int, rows: Rows) -> State:
    """New nodes of a growing tree over the earlier ones, whose keys are read from their slots, and over one another.

    The earlier nodes get queries of zero, whose results are dropped: with a few dozen nodes that is cheaper than a
    kernel of its own.
    """
    assert attn.earlier is not None
    k, v = attn.pool.groups[number].read(layer, attn.earlier.slots[number], rows.k.dtype)
    padded = torch.cat([rows.q.new_zeros(len(k), *rows.q.shape[1:]), rows.q])
    keys, values = torch.cat([k, rows.k]), torch.cat([v, rows.v])
    whole = attn.with_earlier.operands(padded, keys, values, rows.scale, rows.softcap, rows.window)
    out, lse = kernels.ragged_attention(whole)
    return out[len(k) :], lse[len(k) :]


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
