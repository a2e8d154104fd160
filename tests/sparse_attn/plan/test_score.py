"""Block scores against their definitions, written out in loops; chunks against the whole."""

from dataclasses import replace

import pytest
import torch

from sparse_attn.kernels import select_kernels
from sparse_attn.kv.quant import dequantize, quantize
from sparse_attn.plan import score
from sparse_attn.plan.grid import Grid
from sparse_attn.rows import HeadPages

HEADS = range(4)


def test_antidiagonal_is_its_definition(make_sequence):
    seq, stride, block = make_sequence(100), 4, 16
    rows = seq.rows(0, 100)
    grid = Grid.of(rows, block, block)
    got = score.antidiagonal(rows, grid, stride, HEADS)

    q = torch.zeros(112, 4, 16, dtype=torch.float64)
    k = torch.zeros(112, 2, 16, dtype=torch.float64)
    q[:100], k[:100] = seq.q, seq.k
    tiles = 112 // stride
    for h in HEADS:
        logits = torch.full((tiles, tiles), -torch.inf, dtype=torch.float64)
        for i in range(tiles):
            for j in range(i + 1):
                pairs = sum(q[i * stride + stride - 1 - t, h] @ k[j * stride + t, h // 2] for t in range(stride))
                logits[i, j] = pairs * seq.scale / stride
        probs = logits.softmax(-1)
        probs[25:] = 0  # rows from 100 on do not exist
        per_block = probs.view(7, 4, 7, 4).sum((1, 3)) / torch.tensor([4, 4, 4, 4, 4, 4, 1])[:, None]
        torch.testing.assert_close(got[h].double(), per_block, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got.sum(-1), torch.ones(4, 7))


@pytest.mark.parametrize("first", [0, 37, 48])
def test_tile_means_are_their_definition(make_sequence, first):
    seq, stride, block = make_sequence(101), 4, 16
    seq.store(0, first)
    rows = seq.rows(first, 101)
    got = score.tile_means(rows, Grid.of(rows, block, block), stride, HEADS)
    torch.testing.assert_close(got.sum(-1), torch.ones(got.shape[:2]))
    row_tile, keys = 80 // stride, -(-101 // stride)  # the second last query block holds rows 80 to 95
    probs = torch.zeros(4, keys, dtype=torch.float64)
    for h in HEADS:
        means = torch.stack([seq.k[j * stride : (j + 1) * stride, h // 2].mean(0) for j in range(keys)])
        for i in range(row_tile, row_tile + 4):
            logits = means @ seq.q[i * stride : (i + 1) * stride, h].mean(0) * seq.scale
            logits[i + 1 :] = -torch.inf
            probs[h] += logits.softmax(0) / 4
    expected = torch.nn.functional.pad(probs, (0, 2)).unflatten(1, (7, 4)).sum(-1)
    torch.testing.assert_close(got[:, -2].double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("estimate", [score.antidiagonal, score.tile_means])
@pytest.mark.parametrize("cut", [32, 48, 50])
def test_scores_of_a_chunk_are_those_of_the_whole_where_blocks_are_whole(make_sequence, estimate, cut):
    seq = make_sequence(128)
    seq.store(0, 128)
    whole = estimate(seq.rows(0, 128), Grid.of(seq.rows(0, 128), 16, 16), 8, HEADS)
    chunk = estimate(seq.rows(cut, 128), Grid.of(seq.rows(cut, 128), 16, 16), 8, HEADS)
    aligned = -(-cut // 16)
    torch.testing.assert_close(chunk[:, aligned - cut // 16 :], whole[:, aligned:])
    torch.testing.assert_close(chunk.sum(-1), torch.ones(chunk.shape[:2]))


def test_scores_in_slices_are_those_of_one_piece(make_sequence, monkeypatch):
    rows = make_sequence(256).rows(0, 256)
    whole = score.antidiagonal(rows, Grid.of(rows, 16, 16), 8, HEADS)
    monkeypatch.setattr(score, "SCORES_AT_ONCE", 300)
    torch.testing.assert_close(score.antidiagonal(rows, Grid.of(rows, 16, 16), 8, HEADS), whole)


def test_int8_pages_score_as_what_they_hold(make_sequence):
    seq = make_sequence(100, dtype=torch.float32)
    seq.key_pages.zero_()
    seq.store(0, 64)
    packed, scales = quantize(seq.key_pages)
    rows = replace(seq.rows(64, 100), groups=[HeadPages(range(2), packed, seq.table, scales)])
    held = replace(rows, groups=[HeadPages(range(2), dequantize(packed, scales), seq.table)])
    torch.testing.assert_close(rows.keys, held.keys)
    seq.stats.update(0, packed, seq.slots[:64], scales)
    pages = seq.table[:4].long()
    exact = seq.key_pages[pages].amin(2)  # of the keys before quantisation
    low = seq.stats.kmin[0][pages][:, :, 0]
    assert (low <= exact).all()
    assert (exact - low <= scales[pages].amax(2)[..., None] * 1.01).all()  # half a step, and what the code lost


def test_some_heads_score_as_they_do_among_all(make_sequence):
    seq = make_sequence(96)
    rows = seq.rows(0, 96)
    grid = Grid.of(rows, 16, 16)
    for function in (
        lambda h: score.antidiagonal(rows, grid, 8, h),
        lambda h: score.tile_means(rows, grid, 8, h),
        lambda h: score.pooled(rows, grid, h),
    ):
        torch.testing.assert_close(function([1, 2]), function(HEADS)[1:3])


@pytest.mark.parametrize("first", [0, 70])
def test_last_rows_attention_and_its_sums(make_sequence, first):
    seq, block = make_sequence(100), 16
    seq.store(0, first)
    weights = score.last_rows_attention(seq.rows(first, 100), HEADS, last=20)
    k = seq.k.repeat_interleave(2, 1)
    logits = torch.einsum("qhd,khd->hqk", seq.q, k) * seq.scale
    logits = logits.masked_fill(torch.ones(100, 100, dtype=torch.bool).triu(1), -torch.inf)
    truth = logits.softmax(-1)[:, 80:]
    torch.testing.assert_close(weights.double(), truth, atol=1e-6, rtol=1e-5)

    columns = torch.zeros(4, 7, dtype=torch.float64)
    slashes = torch.zeros(4, 8, dtype=torch.float64)
    for i in range(20):
        for j in range(81 + i):
            columns[:, j // block] += truth[:, i, j] / 20
            distance = 80 + i - j
            share = distance % block / block
            slashes[:, distance // block] += truth[:, i, j] * (1 - share) / 20
            slashes[:, distance // block + 1] += truth[:, i, j] * share / 20
    torch.testing.assert_close(score.vertical_blocks(weights, block).double(), columns, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(score.slash_blocks(weights, block).double(), slashes[:, :7], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("first", "end", "block"), [(0, 100, 64), (70, 100, 64), (300, 337, 64), (1000, 1201, 128)])
def test_the_kernel_of_last_rows_weighs_blocks_as_torch_does(make_sequence, first, end, block):
    seq = make_sequence(end, num_heads=6, num_kv_heads=3, dtype=torch.float32)
    seq.store(0, first)
    rows, heads = seq.rows(first, end), [4, 1, 0, 5]  # one head of a group, two of another
    read = select_kernels(rows.q.device, rows.q.dtype).vertical_slash
    if read is None:
        pytest.skip("the C++ kernels cannot be built here")
    weights = score.last_rows_attention(rows, heads)
    expected = score.vertical_blocks(weights, block), score.slash_blocks(weights, block)
    for got, want in zip(read(rows, heads, block, score.LAST_ROWS), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    for got, want in zip(score.vertical_slash(rows, heads, block), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dim", [16, 64, 80])
@pytest.mark.parametrize("int8", [False, True])
def test_the_kernel_of_last_rows_multiplies_bfloat16(make_sequence, dim, int8):
    seq = make_sequence(337, num_heads=6, num_kv_heads=3, dim=dim, dtype=torch.bfloat16)
    seq.key_pages.zero_()
    seq.store(0, 300)
    rows, heads, block = seq.rows(300, 337), [4, 1, 0, 5], 64
    if select_kernels(rows.q.device, rows.q.dtype).vertical_slash is None:
        pytest.skip("the C++ kernels cannot be built here")
    pages = seq.key_pages
    if int8:
        packed, scales = quantize(pages)
        pages = dequantize(packed, scales, torch.bfloat16)
        rows = replace(rows, groups=[HeadPages(range(3), packed, seq.table, scales)])
    held = [HeadPages(range(3), pages.double(), seq.table)]
    weights = score.last_rows_attention(replace(rows, q=rows.q.double(), k=rows.k.double(), groups=held), heads)
    found = score.vertical_slash(rows, heads, block)
    torch.testing.assert_close(found[0], score.vertical_blocks(weights, block), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1], score.slash_blocks(weights, block), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("rows", "keys", "width"), [(1, 1, 2), (16, 64, 32), (37, 130, 160), (40, 63, 512)])
def test_scores_of_bfloat16_are_of_float32(rows, keys, width):
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(heads, n, width, generator=g).bfloat16() for heads, n in ((4, rows), (2, keys)))
    multiply = select_kernels(q.device, q.dtype).scores
    if multiply is None:
        pytest.skip("the C++ kernels cannot be built here")
    found = multiply(q, k, [1, 0, 1, 1])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), q.double() @ k[[1, 0, 1, 1]].double().mT, rtol=0, atol=1e-5 * width**0.5)


@pytest.mark.parametrize("estimate", [score.antidiagonal, score.tile_means])
def test_estimates_in_bfloat16_are_those_of_its_numbers(make_sequence, estimate):
    """As of the same numbers in float32; only the tiles' own rounding, of means, is left."""
    narrow = make_sequence(300, dtype=torch.bfloat16, dim=32)
    wide = replace(narrow, q=narrow.q.float(), k=narrow.k.float(), v=narrow.v.float())
    grids = []
    for seq in (narrow, wide):
        seq.store(0, 128)
        rows = seq.rows(128, 300)
        grids.append(estimate(rows, Grid.of(rows, 64, 64), 8, HEADS))
    torch.testing.assert_close(grids[0], grids[1], rtol=0, atol=1e-5 if estimate is score.antidiagonal else 0.02)


def test_the_kernel_finds_heads_in_pages_of_several_groups(make_sequence):
    seq = make_sequence(200, num_heads=6, num_kv_heads=3, dtype=torch.float32)
    seq.store(0, 150)
    rows = seq.rows(150, 200)
    mixed = torch.randperm(len(seq.key_pages), generator=torch.Generator().manual_seed(1))
    apart = [
        HeadPages((2, 0), seq.key_pages[:, [2, 0]], seq.table),
        HeadPages((1,), seq.key_pages[mixed][:, [1]], mixed.argsort()[seq.table.long()].int()),
    ]
    grouped = replace(rows, groups=apart)
    for got, want in zip(
        score.vertical_slash(grouped, range(6), 64), score.vertical_slash(rows, range(6), 64), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_int8_keys_and_blocks_that_the_kernel_does_not_read_are_weighed_as_by_torch(make_sequence):
    seq = make_sequence(100, dtype=torch.float32)
    seq.key_pages.zero_()
    seq.store(0, 64)
    packed, scales = quantize(seq.key_pages)
    rows = replace(seq.rows(64, 100), groups=[HeadPages(range(2), packed, seq.table, scales)])
    weights = score.last_rows_attention(rows, HEADS)
    for block in (64, 48):
        columns, diagonals = score.vertical_slash(rows, HEADS, block)
        torch.testing.assert_close(columns, score.vertical_blocks(weights, block))
        torch.testing.assert_close(diagonals, score.slash_blocks(weights, block))


def test_pooled_is_the_softmax_of_means(make_sequence):
    seq = make_sequence(90)
    seq.store(0, 40)
    rows = seq.rows(40, 90)
    got = score.pooled(rows, Grid.of(rows, 16, 16), HEADS)
    query = seq.q[48:64, 3].mean(0)
    keys = torch.stack([seq.k[16 * j : 16 * j + 16, 1].mean(0) for j in range(4)])
    torch.testing.assert_close(got[3, 1, :4].double(), (keys @ query * seq.scale).softmax(0), atol=1e-6, rtol=1e-5)
    assert (got[3, 1, 4:] == 0).all()
    first = seq.q[40:48, 0].mean(0) @ seq.k[:16, 0].mean(0)  # a query block that the chunk has only half of
    second = seq.q[40:48, 0].mean(0) @ seq.k[16:32, 0].mean(0)
    torch.testing.assert_close(
        got[0, 0, 1].log() - got[0, 0, 0].log(), ((second - first) * seq.scale).float(), atol=1e-4, rtol=1e-4
    )
