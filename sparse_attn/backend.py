"""The one attention function of every model and every mode, registered with transformers.

transformers calls it once a layer with q, k, v after RoPE and passes through the keyword ``attn=AttnBatch(...)``
that the model runner gave to ``model(...)``. It writes K and V into the pages, attends the new tokens to the paged
context and to one another, and merges the two parts by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface

from sparse_attn.batch import AttnBatch, EarlierNodes
from sparse_attn.blocks import BlockIndex
from sparse_attn.errors import UnsupportedModelFeature
from sparse_attn.host_values import host_list
from sparse_attn.kernels import Kernels, select_kernels
from sparse_attn.kernels.dense import compute_dtype, merge_states
from sparse_attn.kernels.whole import attend_whole
from sparse_attn.kv.pool import GroupPages, KVShape, NewRows
from sparse_attn.plan.decode_plan import all_dense, can_plan, plan_batch
from sparse_attn.rows import HeadPages, SequenceRows, query_heads

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
    kernels = select_kernels(q.device, q.dtype, attn.backend)
    attn.kernels.add(kernels.name)
    new = attn.pool.encode(k, v)
    k, v = new.k, new.v

    common = {"scale": scale, "softcap": softcap or 0.0, "window": window}
    if attn.needed is not None and layer == attn.pool.shape.num_layers - 1:
        _write(attn, layer, new)
        return _attend_needed(kernels, attn, attn.needed, layer, q, k, v, common).unsqueeze(0), None
    if attn.earlier is not None:
        out = _attend_tree(kernels, attn, attn.earlier, layer, q, k, v, common)
    elif attn.policies is None or (q.is_cuda and all_dense(attn, layer, window)):
        out = _attend(kernels, attn, layer, q, k, v, None, common)
    elif q.is_cuda and can_plan(attn, layer, window):
        batch_index = plan_batch(attn, layer, q, k.shape[1], scale, window)
        out = _attend(kernels, attn, layer, q, k, v, batch_index, common)
    else:
        out = torch.empty_like(q)
        for s in range(attn.num_sequences):
            rows = attn.rows(s)
            index = _plan(attn, s, layer, q[rows], k[rows], common)
            out[rows] = _attend(kernels, attn.select(s), layer, q[rows], k[rows], v[rows], index, common)
    _write(attn, layer, new)
    return out.unsqueeze(0), None


def _write(attn: AttnBatch, layer: int, new: NewRows) -> None:
    for group, tables in zip(attn.pool.groups, attn.tables, strict=True):
        group.write(layer, tables.slot_mapping, new)


def _attend_needed(
    kernels: Kernels,
    attn: AttnBatch,
    needed: Sequence[int],
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    common: dict[str, Any],
) -> torch.Tensor:
    """The last layer's attention of the rows whose output is read; zeros for the others, which nobody reads.

    All of a prompt but its end is such rows. K and V of this forward are in pages already.
    """
    out = torch.zeros_like(q)
    if attn.policies is None:
        last, chosen = attn.last_rows(needed)
        if len(chosen):
            out[chosen] = _attend(kernels, last, layer, q[chosen], k[chosen], v[chosen], None, common)
        return out
    for s, count in enumerate(needed):
        if count == 0:
            continue
        rows, one = attn.rows(s), attn.select(s)
        index = _plan(attn, s, layer, q[rows], k[rows], common)
        last, _ = one.last_rows([count])
        end = slice(rows.stop - count, rows.stop)
        index = index.last_rows(count) if index is not None else None
        out[end] = _attend(kernels, last, layer, q[end], k[end], v[end], index, common)
    return out


def _plan(
    attn: AttnBatch, s: int, layer: int, q: torch.Tensor, k: torch.Tensor, common: dict[str, Any]
) -> BlockIndex | None:
    """What sequence ``s``, whose rows are q and k, visits; None for everything."""
    policy = attn.policies[s] if attn.policies is not None else None
    if policy is None:
        return None
    return policy.plan(_sequence_rows(attn.select(s), layer, q, k, common["scale"], common["window"]))


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
    context = (attn.context_lens, attn.cu_seqlens_q)
    options = {"positions": attn.positions, "tree_masks": attn.tree_masks, **common}
    groups = attn.pool.groups
    if len(groups) == 1:
        pages = _pages(groups[0], layer, attn.block_tables)
        if kernels.whole is not None and index is None and attn.tree_masks is None:
            out = attend_whole(kernels.whole, groups[0], layer, (q, k, v), attn.block_tables, *context, **common)
            if out is not None:
                return out
        return kernels.attention(q, k, v, *pages.tensors, *context, index=index, **options, **pages.scales)[0]
    out, num_kv_heads = torch.empty_like(q), k.shape[1]
    for group, tables in zip(groups, attn.tables, strict=True):
        own = list(group.heads[layer])
        if not own:
            continue
        queries = query_heads(own, q.shape[1] // num_kv_heads)
        pages = _pages(group, layer, tables.block_tables)
        part = index.take_heads(own, num_kv_heads) if index is not None else None
        rows = (q[:, queries], k[:, own], v[:, own])
        out[:, queries] = kernels.attention(*rows, *pages.tensors, *context, index=part, **options, **pages.scales)[0]
    return out


class _Pages(NamedTuple):
    """The arguments of a kernel that say where keys and values lie."""

    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    scales: dict[str, torch.Tensor]


def _pages(group: GroupPages, layer: int, block_tables: torch.Tensor) -> _Pages:
    k_scale, v_scale = group.key_scales(layer), group.value_scales(layer)
    scales = {"k_scale": k_scale, "v_scale": v_scale} if k_scale is not None and v_scale is not None else {}
    return _Pages((group.keys[layer], group.values[layer], block_tables), scales)


def _sequence_rows(
    one: AttnBatch, layer: int, q: torch.Tensor, k: torch.Tensor, scale: float, window: int
) -> SequenceRows:
    """What a policy sees of the only sequence of a batch."""
    tree_mask = one.tree_masks[0] if one.tree_masks is not None else None
    held = tuple(
        HeadPages(group.heads[layer], group.keys[layer], tables.block_tables[0], group.key_scales(layer), group.stats)
        for group, tables in zip(one.pool.groups, one.tables, strict=True)
    )
    whole = held[0] if len(held) == 1 else None
    return SequenceRows(
        q,
        k,
        scale,
        context_len=host_list(one.context_lens)[0],
        key_pages=whole.key_pages if whole else None,
        block_table=whole.block_table if whole else None,
        key_scales=whole.key_scales if whole else None,
        stats=whole.stats if whole else None,
        groups=() if whole else held,
        window=window,
        positions=one.positions,
        tree_mask=tree_mask,
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
    new, known = earlier.visible.shape
    old_k, old_v = _read_earlier(attn, layer, k)
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
    out, lse = torch.zeros_like(q), q.new_full(q.shape[:2], -torch.inf, dtype=compute_dtype(q.dtype))
    for group, tables in zip(attn.pool.groups, attn.tables, strict=True):
        own = list(group.heads[layer])
        if not own:
            continue
        queries = query_heads(own, q.shape[1] // k.shape[1])
        pages = _pages(group, layer, tables.block_tables)
        index = _present_pages(attn, tables.block_tables, len(own))
        out[:, queries], lse[:, queries] = kernels.paged_attention(
            q[:, queries],
            *pages.tensors,
            attn.context_lens,
            attn.cu_seqlens_q,
            positions=attn.positions,
            index=index,
            **common,
            **pages.scales,
        )
    return merge_states(out, lse, *(part[known:] for part in new_part))[0]


def _read_earlier(attn: AttnBatch, layer: int, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V [m, Hkv, D] of the tree nodes that earlier forwards have run."""
    assert attn.earlier is not None
    old_k, old_v = (k.new_empty(len(attn.earlier.slots), *k.shape[1:]) for _ in range(2))
    for group, tables in zip(attn.pool.groups, attn.tables, strict=True):
        assert tables.earlier_slots is not None
        own = list(group.heads[layer])
        old_k[:, own], old_v[:, own] = group.read(layer, tables.earlier_slots, k.dtype)
    return old_k, old_v


def _present_pages(attn: AttnBatch, block_tables: torch.Tensor, num_heads: int) -> BlockIndex | None:
    """The context's pages that have not been freed, for rows that no policy plans; None where all are there."""
    present = block_tables != attn.pool.num_pages
    if bool(present.all()):
        return None
    length, count = int(attn.context_lens[0]), int(attn.cu_seqlens_q[1])
    index = BlockIndex.of_runs(present.expand(num_heads, 1, -1), [count], length, block_k=attn.pool.page_size)
    return index.split()[0]


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
