"""The reference kernels against one softmax a row, written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_attn.kernels.dense import attention, merge_states, paged_attention, ragged_attention
from sparse_attn.kernels.operands import Pages, Rows

SHAPES = [(4, 4, 64), (8, 2, 96), (7, 1, 128), (8, 1, 16)]


def softmax_row(query, keys, values, visible, scale, softcap):
    """One query row [D] over the visible keys [N, D]: (out [D], lse)."""
    if not visible.any():
        return torch.zeros_like(query), -math.inf
    scores = (keys[visible] @ query) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.softmax(scores, 0) @ values[visible], torch.logsumexp(scores, 0)


def oracle(q, keys, values, visible, scale, softcap):
    """q [R, Hq, D], keys and values [N, Hkv, D], visible bool [Hq, R, N]."""
    rows, heads, _ = q.shape
    group = heads // keys.shape[1]
    out, lse = torch.zeros_like(q), torch.full((rows, heads), -math.inf, dtype=q.dtype)
    for i in range(rows):
        for h in range(heads):
            out[i, h], lse[i, h] = softmax_row(
                q[i, h], keys[:, h // group], values[:, h // group], visible[h, i], scale, softcap
            )
    return out, lse


class HeadFilter:
    """A random key filter with one bool [H, rows, keys] a sequence."""

    def __init__(self, masks):
        self.masks = masks

    def mask(self, sequence, rows, num_keys):
        return self.masks[sequence][:, rows, :num_keys]


def random_tree_mask(n, generator):
    parents = [int(torch.randint(-1, i, (1,), generator=generator)) if i else -1 for i in range(n)]
    mask = torch.eye(n, dtype=torch.bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            mask[i] |= mask[parent]
    return mask


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), min_size=1, max_size=4),
    st.sampled_from([0, 1, 7, 64]),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from(["none", "kv", "query"]),
    st.integers(0, 2**31),
)
def test_paged_attention_is_a_softmax_over_the_context(shape, sequences, window, softcap, filtered, seed):
    heads, kv_heads, dim = shape
    page_size = 8
    g = torch.Generator().manual_seed(seed)
    rows, lengths = [r for r, _ in sequences], [c for _, c in sequences]
    pages_needed = max(-(-max(lengths) // page_size), 1)
    total = pages_needed * len(sequences) + 3
    tables = torch.randperm(total, generator=g)[: pages_needed * len(sequences)].view(len(sequences), -1).int()
    k_cache, v_cache = (torch.randn(total, kv_heads, page_size, dim, generator=g, dtype=torch.float64) for _ in "kv")
    cu = torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()], dtype=torch.int32)
    q = torch.randn(sum(rows), heads, dim, generator=g, dtype=torch.float64)
    index_heads = {"none": 0, "kv": kv_heads, "query": heads}[filtered]
    masks = [torch.rand(index_heads, r, c, generator=g) < 0.5 for r, c in sequences]
    index = HeadFilter(masks) if filtered != "none" else None

    new = torch.full((sum(rows), kv_heads, dim), torch.nan, dtype=torch.float64)  # which it does not read
    given = Rows(q, new, new, cu, torch.tensor(lengths, dtype=torch.int32), 0.3, softcap, window)
    out, lse = paged_attention(Pages(k_cache, v_cache, tables), given, index)

    for s, (r, c) in enumerate(sequences):
        tokens = [(int(tables[s, j // page_size]), j % page_size) for j in range(c)]
        keys = torch.stack([k_cache[p, :, o] for p, o in tokens]) if c else q.new_zeros(0, kv_heads, dim)
        values = torch.stack([v_cache[p, :, o] for p, o in tokens]) if c else q.new_zeros(0, kv_heads, dim)
        visible = torch.ones(heads, r, c, dtype=torch.bool)
        for i in range(r):
            for j in range(c):
                if window and j <= c + i - window:
                    visible[:, i, j] = False
        if index is not None:
            visible &= masks[s].repeat_interleave(heads // index_heads, 0)
        expected_out, expected_lse = oracle(q[cu[s] : cu[s + 1]], keys, values, visible, 0.3, softcap)
        torch.testing.assert_close(out[cu[s] : cu[s + 1]], expected_out, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(lse[cu[s] : cu[s + 1]], expected_lse, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.lists(st.integers(0, 20), min_size=1, max_size=4),
    st.sampled_from([0, 1, 5]),
    st.sampled_from([0.0, 3.0]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_ragged_attention_is_causal_or_follows_the_tree(shape, rows, window, softcap, trees, seed):
    heads, kv_heads, dim = shape
    g = torch.Generator().manual_seed(seed)
    cu = torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()], dtype=torch.int32)
    total = sum(rows)
    q = torch.randn(total, heads, dim, generator=g, dtype=torch.float64)
    k, v = (torch.randn(total, kv_heads, dim, generator=g, dtype=torch.float64) for _ in "kv")
    tree_masks = [random_tree_mask(n, g) if trees and s % 2 == 0 else None for s, n in enumerate(rows)]
    positions = torch.cat(
        [torch.arange(n) + 9 if m is None else m.sum(1) + 8 for n, m in zip(rows, tree_masks, strict=True)]
    )

    out, lse = ragged_attention(Rows(q, k, v, cu, torch.zeros(len(rows)), 0.2, softcap, window, positions, tree_masks))

    for s, n in enumerate(rows):
        lo, hi = int(cu[s]), int(cu[s + 1])
        at = positions[lo:hi]
        visible = torch.zeros(heads, n, n, dtype=torch.bool)
        for i in range(n):
            for j in range(n):
                seen = tree_masks[s][i, j] if tree_masks[s] is not None else j <= i
                visible[:, i, j] = bool(seen) and (not window or at[j] > at[i] - window)
        expected_out, expected_lse = oracle(q[lo:hi], k[lo:hi], v[lo:hi], visible, 0.2, softcap)
        torch.testing.assert_close(out[lo:hi], expected_out, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(lse[lo:hi], expected_lse, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 30), st.integers(1, 30), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_merged_parts_are_the_whole(context, new, seed):
    """Context by pages, new rows among themselves, merged: causal attention over all of it."""
    g = torch.Generator().manual_seed(seed)
    heads, kv_heads, dim, page_size = 4, 2, 16, 4
    length = context + new
    q = torch.randn(length, heads, dim, generator=g, dtype=torch.float64)
    k, v = (torch.randn(length, kv_heads, dim, generator=g, dtype=torch.float64) for _ in "kv")
    pages = -(-context // page_size)
    caches = [torch.full((pages + 1, kv_heads, page_size, dim), torch.nan, dtype=torch.float64) for _ in "kv"]
    for cache, x in zip(caches, (k, v), strict=True):
        cache.fill_(0.0)
        for j in range(context):
            cache[j // page_size, :, j % page_size] = x[j]
    rows = Rows.of_sequence(q[context:], k[context:], v[context:], 0.25, context)
    out, lse = attention(Pages(*caches, torch.arange(pages + 1).view(1, -1).int()), rows)
    whole_out, whole_lse = ragged_attention(Rows.of_sequence(q, k, v, 0.25))
    torch.testing.assert_close(out, whole_out[context:], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, whole_lse[context:], rtol=1e-12, atol=1e-12)


def test_merging_two_empty_states_stays_empty():
    out, lse = torch.zeros(2, 3, 4), torch.full((2, 3), -math.inf)
    merged_out, merged_lse = merge_states(out, lse, out, lse)
    assert torch.equal(merged_out, out)
    assert torch.equal(merged_lse, lse)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_close_to_float64(dtype):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(300, h, 64, generator=g, dtype=torch.float64).to(dtype) for h in (4, 2, 2))
    out, lse = ragged_attention(Rows.of_sequence(q, k, v, 0.125))
    exact, exact_lse = ragged_attention(Rows.of_sequence(q.double(), k.double(), v.double(), 0.125))
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=0, atol=1e-5)
