"""The Triton kernels against the float64 reference: on a GPU, else on the CPU under Triton's interpreter."""

from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from sparse_attn.blocks import BlockIndex, query_blocks
from sparse_attn.errors import BlockIndexError
from sparse_attn.kernels import dense
from sparse_attn.kernels.operands import Pages, Rows
from sparse_attn.kernels.triton import attention as triton_attention
from sparse_attn.kernels.triton.launch import INTERPRETED, query_tiles
from sparse_attn.kv.quant import dequantize, quantize

DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
PAGE = 16


class Batch:
    """A ragged batch with a shuffled pool whose unused slots are NaN."""

    def __init__(self, lens, contexts, heads, kv_heads, dim, dtype=torch.float32, seed=0, page=PAGE):
        g = torch.Generator().manual_seed(seed)
        self.lens, self.contexts, self.heads, self.kv_heads, self.page = lens, contexts, heads, kv_heads, page
        rows = sum(lens)
        self.q = torch.randn(rows, heads, dim, generator=g).to(dtype)
        self.k = torch.randn(rows, kv_heads, dim, generator=g).to(dtype)
        self.v = torch.randn(rows, kv_heads, dim, generator=g).to(dtype)
        pages = [-(-c // page) for c in contexts]
        order = torch.randperm(sum(pages) + 2, generator=g).int()
        width = max(1, *pages)
        self.tables = torch.zeros(len(lens), width, dtype=torch.int32)
        self.k_cache, self.v_cache = (
            torch.full((len(order), kv_heads, page, dim), torch.nan, dtype=dtype) for _ in range(2)
        )
        for s, count in enumerate(pages):
            own, order = order[:count], order[count:]
            self.tables[s, :count] = own
            for cache in (self.k_cache, self.v_cache):
                for i, frame in enumerate(own.tolist()):
                    filled = min(page, contexts[s] - i * page)
                    cache[frame, :, :filled] = torch.randn(kv_heads, filled, dim, generator=g).to(dtype)
        self.cu = torch.tensor([0, *lens]).cumsum(0).int()
        self.context_lens = torch.tensor(contexts, dtype=torch.int32)
        self.scale = dim**-0.5

    def random_index(self, per_kv_head, block_q, seed=1):
        count = len(query_blocks(self.lens, self.contexts, block_q)[1])
        width = max(-(-(n + c) // self.page) for n, c in zip(self.lens, self.contexts, strict=True))
        heads = self.kv_heads if per_kv_head else self.heads
        mask = torch.rand(heads, count, width, generator=torch.Generator().manual_seed(seed)) < 0.4
        return BlockIndex.from_mask(mask, self.lens, self.contexts, block_q=block_q, block_k=self.page)

    def pages(self, exact=False):
        k, v = (x.double() if exact else x.to(DEVICE) for x in (self.k_cache, self.v_cache))
        return Pages(k, v, self.tables if exact else self.tables.to(DEVICE))

    def rows(self, exact=False, **options):
        new = (x.double() if exact else x.to(DEVICE) for x in (self.q, self.k, self.v))
        rest = (self.cu, self.context_lens)
        if not exact:
            rest = tuple(x.to(DEVICE) for x in rest)
            options = {n: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for n, x in options.items()}
        return Rows(*new, *rest, self.scale, **options)

    def check_paged(self, index=None, **options):
        own = index.to(DEVICE) if index is not None else None
        self.compare(
            triton_attention.paged_attention(self.pages(), self.rows(**options), own),
            dense.paged_attention(self.pages(exact=True), self.rows(exact=True, **options), index),
        )

    def check_ragged(self, index=None, **options):
        own = index.to(DEVICE) if index is not None else None
        self.compare(
            triton_attention.ragged_attention(self.rows(**options), own),
            dense.ragged_attention(self.rows(exact=True, **options), index),
        )

    def compare(self, got, expected):
        tolerance = TOLERANCE[self.q.dtype]
        assert got[0].dtype == self.q.dtype
        assert got[1].dtype == torch.float32
        torch.testing.assert_close(got[0].cpu().double(), expected[0], atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(got[1].cpu().double(), expected[1], atol=2e-5, rtol=2e-5)
        unseen = expected[1] == -torch.inf
        assert (got[1].cpu()[unseen] == -torch.inf).all()
        assert (got[0].cpu()[unseen] == 0).all()


SHAPES = [(2, 2, 64), (4, 1, 96), (7, 1, 64), (8, 2, 128), (8, 1, 64)]


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_dense_over_pages_and_new_rows(heads, kv_heads, dim):
    batch = Batch([1, 0, 19], [33, 7, 0], heads, kv_heads, dim)
    batch.check_paged()
    batch.check_ragged()


no_bfloat16 = pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter computes bfloat16 dots on raw bits")


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=no_bfloat16)])
def test_half_precision(dtype):
    batch = Batch([3, 18], [40, 5], 4, 2, 64, dtype)
    batch.check_paged()
    batch.check_ragged()


@pytest.mark.parametrize("per_kv_head", [True, False])
@pytest.mark.parametrize("block_q", [1, 16])
def test_a_random_index_is_a_mask(per_kv_head, block_q):
    """Contexts that end inside a page, so the border block is in both parts; rows that see nothing."""
    batch = Batch([6, 1, 21], [37, 50, 0], 4, 2, 32)
    context, new = batch.random_index(per_kv_head, block_q).split()
    batch.check_paged(context)
    batch.check_ragged(new)


def test_a_full_index_is_dense():
    batch = Batch([6, 20], [37, 0], 4, 2, 32)
    full = BlockIndex.full(batch.lens, batch.contexts, num_heads=2, block_q=16, block_k=PAGE)
    paged = partial(triton_attention.paged_attention, batch.pages())
    for part, kernel in zip(full.to(DEVICE).split(), (paged, triton_attention.ragged_attention), strict=True):
        for got, expected in zip(kernel(batch.rows(), part), kernel(batch.rows()), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("window", [5, 24])
def test_sliding_windows(window):
    batch = Batch([4, 22], [45, 3], 4, 2, 32)
    for positions in (None, torch.cat([45 + torch.arange(4), 3 + torch.arange(22)])):
        batch.check_paged(window=window, positions=positions)
        batch.check_ragged(window=window, positions=positions)
    batch.check_paged(batch.random_index(True, 16).split()[0], window=window)


def test_soft_caps():
    batch = Batch([4, 17], [45, 3], 4, 2, 32)
    batch.q *= 8
    batch.check_paged(softcap=5.0)
    batch.check_ragged(softcap=5.0)


def random_tree(n, seed):
    """bool [n, n] ancestor-or-self of a random tree in topological order, and each node's depth."""
    g = torch.Generator().manual_seed(seed)
    mask, depth = torch.eye(n, dtype=torch.bool), torch.zeros(n, dtype=torch.int64)
    for i in range(1, n):
        parent = int(torch.randint(0, i, (), generator=g))
        mask[i] |= mask[parent]
        depth[i] = depth[parent] + 1
    return mask, depth


@pytest.mark.parametrize("window", [0, 3])
def test_trees_beside_plain_rows(window):
    batch = Batch([9, 5, 13], [20, 0, 7], 4, 2, 32)
    (a, depth_a), (b, depth_b) = random_tree(9, 0), random_tree(13, 1)
    positions = torch.cat([20 + depth_a, torch.arange(5), 7 + depth_b])
    batch.check_ragged(tree_masks=[a, None, b], window=window, positions=positions)
    batch.check_paged(window=window, positions=positions)


def test_few_rows_over_long_contexts_are_split_and_joined(monkeypatch):
    monkeypatch.setattr(triton_attention, "SPLIT_KEYS", 32)
    batch = Batch([1, 2], [150, 9], 4, 2, 32)
    assert triton_attention._Launch(batch.rows(), None).splits(batch.pages()) == 4
    batch.check_paged()
    batch.check_paged(batch.random_index(True, 1).split()[0])
    batch.check_paged(window=20)


@pytest.mark.parametrize("sparse", [False, True])
def test_context_and_new_rows_in_one_call(sparse):
    batch = Batch([5, 1, 17], [37, 16, 0], 4, 2, 32)
    index = batch.random_index(True, 16) if sparse else None
    on_device = index.to(DEVICE) if index is not None else None
    got = triton_attention.attention(batch.pages(), batch.rows(), on_device)
    batch.compare(got, dense.attention(batch.pages(exact=True), batch.rows(exact=True), index))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_int8_pages_are_read_as_their_dequantised_values(dtype):
    batch = Batch([1, 4], [45, 20], 4, 2, 32, dtype)
    (k8, k_scale), (v8, v_scale) = (quantize(x.nan_to_num()) for x in (batch.k_cache, batch.v_cache))
    batch.k_cache, batch.v_cache = dequantize(k8, k_scale), dequantize(v8, v_scale)
    expected = dense.paged_attention(batch.pages(exact=True), batch.rows(exact=True))
    codes = Pages(*(x.to(DEVICE) for x in (k8, v8, batch.tables, k_scale, v_scale)))
    batch.compare(triton_attention.paged_attention(codes, batch.rows()), expected)


def test_larger_pages():
    batch = Batch([2, 30], [70, 40], 4, 2, 32, page=64)
    batch.check_paged(batch.random_index(True, 64).split()[0])
    batch.check_ragged(batch.random_index(False, 64).split()[1])


def test_an_index_whose_blocks_are_no_pages_is_refused():
    batch = Batch([2], [20], 2, 2, 16)
    index = BlockIndex.full([2], [20], num_heads=2, block_q=16, block_k=32)
    with pytest.raises(BlockIndexError, match="blocks of 32 keys, the pages hold 16"):
        triton_attention.paged_attention(batch.pages(), batch.rows(), index.to(DEVICE))


def test_tiles_cover_every_row_once():
    lens = [0, 5, 33, 0, 1, 16]
    rows_of = Batch(lens, [0] * 6, 1, 1, 16).rows()
    cu = rows_of.cu_seqlens
    first, count, seq = query_tiles(rows_of, 16)
    assert query_tiles(rows_of, 16)[0] is first  # made once, for all layers
    rows = [(f + i, s) for f, c, s in zip(first.tolist(), count.tolist(), seq.tolist(), strict=True) for i in range(c)]
    assert sorted(rows) == [(r, s) for s, n in enumerate(lens) for r in range(int(cu[s]), int(cu[s]) + n)]
    assert len(first) == sum(lens) // 16 + len(lens)
