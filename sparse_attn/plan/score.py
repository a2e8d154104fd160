"""Estimates of how much attention each block of keys receives, at a fraction of attention's cost.

All are softmax weights, not negative, in float32; rows are the new rows of one sequence in chunked prefill, keys
are all its keys so far. ``heads`` are the query heads wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_attn.plan.grid import Grid
from sparse_attn.rows import SequenceRows

SCORES_AT_ONCE = 1 << 25  # elements of an intermediate score matrix: bounds memory, not the result
LAST_ROWS = 64  # rows that stand for all in vertical-slash estimates (MInference, arXiv 2407.02490, section 3.2)


def antidiagonal(rows: SequenceRows, grid: Grid, stride: int, heads: Sequence[int]) -> Tensor:
    """Block weights from sums of q·k along antidiagonals: XAttention, arXiv 2503.16428, section 2.1.

    Every ``stride`` keys in order meet ``stride`` queries in reverse order; the sum over the pairs is one dot
    product of stride*D numbers and stands for the whole stride x stride tile. block_q and block_k must be
    multiples of ``stride``.

    Returns:
        float32 [len(heads), N, K]: mean over the block's rows of the softmax weight on each key block.
    """
    read_in_place = len(rows.groups) <= 1 and all(own.key_scales is None for own in rows.groups)
    if rows.q.is_cuda and read_in_place and len(heads) == rows.q.shape[1]:
        from sparse_attn.kernels.triton import score as triton_score

        return triton_score.antidiagonal(rows, grid, stride)
    queries = _query_tiles(rows, grid, stride, heads).flip(2).flatten(2)  # [h, m, stride*D]
    keys = _padded_keys(rows, grid).unflatten(1, (-1, stride)).flatten(2)  # [Hkv, K*block_k/stride, stride*D]
    return _tile_weights(queries, keys, rows, grid, stride, heads, rows.scale / stride)


def tile_means(rows: SequenceRows, grid: Grid, stride: int, heads: Sequence[int]) -> Tensor:
    """Block weights from the mean query and the mean key of every stride x stride tile.

    The product of the means is the mean of all stride**2 products of the tile, where `antidiagonal` takes stride of
    them: a column or a diagonal weighs the same in both, noise weighs less here, and it costs 1/stride as much.

    Returns:
        As `antidiagonal`.
    """
    tiles = _query_tiles(rows, grid, stride, heads)
    start = rows.context_len // grid.block_q * grid.block_q
    first = torch.arange(tiles.shape[1], device=tiles.device) * stride + start
    present = (first + stride).clamp(max=rows.length) - first.clamp(min=rows.context_len)
    queries = tiles.sum(2) / present.clamp(min=1)[:, None].to(tiles.dtype)
    keys = rows.key_tile_means(stride)
    keys = F.pad(keys, (0, 0, 0, grid.num_key_blocks * (grid.block_k // stride) - keys.shape[1]))
    return _tile_weights(queries, keys, rows, grid, stride, heads, rows.scale)


def pooled(rows: SequenceRows, grid: Grid, heads: Sequence[int]) -> Tensor:
    """Block weights from the mean query and the mean key of each block (MInference's block-sparse heads).

    Returns:
        float32 [len(heads), N, K], softmax over the causal blocks.
    """
    queries = _mean_queries(rows, grid, heads)
    keys = rows.key_tile_means(grid.block_k).float()
    kv_heads = _kv_heads(rows, heads)
    scores = _grouped_matmul(queries, keys, kv_heads) * rows.scale
    return torch.softmax(scores.masked_fill(~grid.causal, -torch.inf), dim=-1)


def vertical_slash(rows: SequenceRows, heads: Sequence[int], block_k: int) -> tuple[Tensor, Tensor]:
    """Share of the last rows' attention on each block of key columns and on each block diagonal.

    Returns:
        float32 [len(heads), K] each, as `vertical_blocks` and `slash_blocks` of `last_rows_attention`.
    """
    from sparse_attn.kernels import select_kernels

    estimate = select_kernels(rows.q.device, rows.q.dtype).vertical_slash
    found = estimate(rows, heads, block_k, LAST_ROWS) if estimate is not None else None
    if found is not None:
        return found
    weights = last_rows_attention(rows, heads)
    return vertical_blocks(weights, block_k), slash_blocks(weights, block_k)


def last_rows_attention(rows: SequenceRows, heads: Sequence[int], last: int = LAST_ROWS) -> Tensor:
    """Exact attention weights of the last rows over every key: float32 [len(heads), min(last, n), length]."""
    count = min(last, rows.num_rows)
    kv_heads = _kv_heads(rows, heads)
    queries = _queries(rows, heads)[:, -count:]
    scores = _grouped_matmul(queries, rows.keys, kv_heads).float() * rows.scale
    future = torch.ones(count, count, dtype=torch.bool, device=scores.device).triu(1)
    scores[..., -count:].masked_fill_(future, -torch.inf)
    return torch.softmax(scores, dim=-1)


def vertical_blocks(weights: Tensor, block_k: int) -> Tensor:
    """weights [h, rows, length] → [h, K]: share of attention that each block of key columns receives."""
    columns = weights.mean(1)
    return F.pad(columns, (0, -columns.shape[1] % block_k)).unflatten(1, (-1, block_k)).sum(-1)


def slash_blocks(weights: Tensor, block_k: int) -> Tensor:
    """weights [h, rows, length] of the last rows → [h, K]: share of attention on each block diagonal.

    Block diagonal e is the pairs of blocks (i, i - e). A diagonal at distance d = a*block_k + r crosses block diagonals
    a and a + 1, in the proportion block_k - r to r.
    """
    count, length = weights.shape[1:]
    reverse = F.pad(weights.flip(-1), (0, count)).contiguous()
    # Row i holds distance d at column d + count - 1 - i: a view whose row stride is one short lines distances up.
    strides = (reverse.stride(0), reverse.stride(1) - 1, 1)
    lined_up = reverse.as_strided((len(weights), count, length), strides, count - 1)
    slashes = F.pad(lined_up.mean(1), (0, -length % block_k)).unflatten(1, (-1, block_k))
    share = torch.arange(block_k, device=weights.device) / block_k
    near = (slashes * (1 - share)).sum(-1)
    far = (slashes * share).sum(-1)
    return near + F.pad(far, (1, 0))[:, :-1]


def _mean_queries(rows: SequenceRows, grid: Grid, heads: Sequence[int]) -> Tensor:
    """float32 [len(heads), N, D]."""
    lead = grid.context_len % grid.block_q
    tail = -(lead + grid.num_rows) % grid.block_q
    queries = F.pad(_queries(rows, heads).float(), (0, 0, lead, tail))
    present = (grid.last - grid.start + 1).clone()
    present[0] -= lead
    return queries.unflatten(1, (-1, grid.block_q)).sum(2) / present[:, None]


def _tile_weights(
    queries: Tensor,
    keys: Tensor,
    rows: SequenceRows,
    grid: Grid,
    stride: int,
    heads: Sequence[int],
    factor: float,
) -> Tensor:
    """queries [h, m, X] and keys [Hkv, n, X] of tiles of ``stride`` → float32 [h, N, K], as `antidiagonal`."""
    kv_heads = _kv_heads(rows, heads)
    start = rows.context_len // grid.block_q * grid.block_q
    tiles_q, tiles_k = grid.block_q // stride, grid.block_k // stride
    weights = queries.new_zeros(len(heads), grid.num_query_blocks, grid.num_key_blocks, dtype=torch.float32)
    blocks_at_once = max(1, SCORES_AT_ONCE // (len(heads) * tiles_q * keys.shape[1]))
    for first in range(0, grid.num_query_blocks, blocks_at_once):
        last = min(first + blocks_at_once, grid.num_query_blocks)
        last_row = min(start + last * grid.block_q, rows.length) - 1
        seen = last_row // grid.block_k + 1  # key blocks visible to any of these query blocks
        part = queries[:, first * tiles_q : last * tiles_q]
        scores = _grouped_matmul(part, keys[:, : seen * tiles_k], kv_heads).float().mul_(factor)
        row_tiles = start // stride + torch.arange(first * tiles_q, last * tiles_q, device=scores.device)
        past = start // stride + first * tiles_q  # tiles that all of these rows see
        recent = torch.arange(past, seen * tiles_k, device=scores.device)
        scores[..., past:].masked_fill_(recent > row_tiles[:, None], -torch.inf)
        probs = torch.softmax(scores, dim=-1).view(len(heads), last - first, tiles_q, seen, tiles_k)
        present = (row_tiles * stride + stride > rows.context_len) & (row_tiles * stride < rows.length)
        present = present.view(last - first, tiles_q)
        share = present / present.sum(-1, keepdim=True)  # rows of an earlier chunk or beyond the end count nothing
        # Sum key tiles first: the sum over the query tiles is then a small product.
        weights[:, first:last, :seen] = torch.einsum("hbtk,bt->hbk", probs.sum(-1), share)
    return weights


def _query_tiles(rows: SequenceRows, grid: Grid, stride: int, heads: Sequence[int]) -> Tensor:
    """[len(heads), m, stride, D]: the rows on the absolute grid, zero where this chunk has none."""
    lead = grid.context_len % grid.block_q  # rows of the first query block that an earlier chunk has seen
    padded = F.pad(_queries(rows, heads), (0, 0, lead, -(lead + grid.num_rows) % grid.block_q))
    return padded.unflatten(1, (-1, stride))


def _padded_keys(rows: SequenceRows, grid: Grid) -> Tensor:
    """[Hkv, K*block_k, D], zero beyond the last key."""
    keys, wanted = rows.padded_keys, grid.num_key_blocks * grid.block_k
    return keys[:, :wanted] if wanted <= keys.shape[1] else F.pad(keys, (0, 0, 0, wanted - keys.shape[1]))


def _queries(rows: SequenceRows, heads: Sequence[int]) -> Tensor:
    """[len(heads), n, D]."""
    every = len(heads) == rows.q.shape[1]
    return (rows.q if every else rows.q[:, list(heads)]).transpose(0, 1)


def _kv_heads(rows: SequenceRows, heads: Sequence[int]) -> list[int]:
    group = rows.q.shape[1] // rows.k.shape[1]
    return [head // group for head in heads]


def _grouped_matmul(queries: Tensor, keys: Tensor, kv_heads: Sequence[int]) -> Tensor:
    """queries [h, m, X], keys [Hkv, n, X], kv_heads [h]: the KV head of each → [h, m, n]; keys are not repeated."""
    from sparse_attn.kernels import select_kernels

    scores = select_kernels(queries.device, queries.dtype).scores
    if scores is not None:
        return scores(queries, keys, kv_heads)
    out = queries.new_empty(len(queries), queries.shape[1], keys.shape[1])
    for i, kv_head in enumerate(kv_heads):
        torch.matmul(queries[i], keys[kv_head].T, out=out[i])
    return out
