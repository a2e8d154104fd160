"""The C++ kernels against the float64 reference, and their rows against themselves in other company."""

import platform
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_attn.blocks import BlockIndex, query_blocks
from sparse_attn.kernels import TORCH, dense, select_kernels
from sparse_attn.kernels.cpu.build import BuildError, library
from sparse_attn.kernels.operands import Pages, Rows, Skip
from sparse_attn.kv.quant import dequantize, quantize

try:
    library()
except BuildError as error:
    pytest.skip(str(error), allow_module_level=True)

from sparse_attn.kernels.cpu import attention as cpu

SHAPES = [(2, 2, 64), (8, 2, 64), (7, 1, 128), (8, 1, 96), (4, 2, 20)]
ALL_SHAPES = [*SHAPES, (4, 1, 256), (3, 1, 32), (20, 1, 80)]
DTYPES = [torch.float32, torch.bfloat16]
SEED = st.integers(0, 2**31)


@pytest.fixture(autouse=True)
def one_thread():
    """Many small calls: waking threads would cost more than the work. Tests that need several say so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Case:
    """A ragged batch over pages, in one dtype."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    tables: torch.Tensor
    contexts: list[int]
    rows: list[int]

    @classmethod
    def random(cls, shape, rows, contexts, page_size, seed, dtype=torch.float32):
        heads, kv_heads, dim = shape
        g = torch.Generator().manual_seed(seed)
        width = max(-(-max(contexts) // page_size), 1)
        pages = width * len(rows)
        tables = torch.randperm(pages + 2, generator=g)[:pages].view(len(rows), width).int()
        caches = [torch.randn(pages + 2, kv_heads, page_size, dim, generator=g) for _ in "kv"]
        total = sum(rows)
        new = [torch.randn(total, h, dim, generator=g) for h in (heads, kv_heads, kv_heads)]
        return cls(*(x.to(dtype) for x in (*new, *caches)), tables, list(contexts), list(rows))

    @property
    def cu(self):
        return torch.tensor([0, *torch.tensor(self.rows).cumsum(0).tolist()], dtype=torch.int32)

    @property
    def context_lens(self):
        return torch.tensor(self.contexts, dtype=torch.int32)

    def positions(self, trees=None):
        parts = []
        for s, (n, context) in enumerate(zip(self.rows, self.contexts, strict=True)):
            tree = trees[s] if trees else None
            parts.append(context + (torch.arange(n) if tree is None else tree.sum(1) - 1))
        return torch.cat(parts)

    def pages(self, dtype=None):
        return Pages(self.k_cache.to(dtype), self.v_cache.to(dtype), self.tables)

    def new(self, dtype=None, **options):
        q, k, v = (x.to(dtype) for x in (self.q, self.k, self.v))
        return Rows(q, k, v, self.cu, self.context_lens, 0.2, **options)

    def attend(self, index=None, **options):
        return cpu.attention(self.pages(), self.new(**options), index)

    def reference(self, index=None, **options):
        return dense.attention(self.pages(torch.float64), self.new(torch.float64, **options), index)

    def absolute(self):
        """With the absolute values of V: what the roundings of weights may cost is in proportion to their attention."""
        return replace(self, v=self.v.abs(), v_cache=self.v_cache.abs())


def random_tree(n, generator):
    """bool [n, n], ancestor or self; node 0 is the root of all, as the last committed token is."""
    mask = torch.eye(n, dtype=torch.bool)
    for i in range(1, n):
        mask[i] |= mask[int(torch.randint(0, i, (1,), generator=generator))]
    return mask


def random_index(case, heads, block_q, block_k, density, generator):
    bounds = query_blocks(case.rows, case.contexts, block_q)[0]
    keys = max((c + n for c, n in zip(case.contexts, case.rows, strict=True)), default=0)
    mask = torch.rand(heads, len(bounds) - 1, -(-keys // block_k), generator=generator) < density
    return BlockIndex.from_mask(mask, case.rows, case.contexts, block_q=block_q, block_k=block_k)


def assert_same(actual, expected, absolute=None):
    """Weights and results in bfloat16 are each off by 2⁻⁸ of themselves at most, of the ``absolute``; all else is of
    float32."""
    rounded = 0.0 if actual[0].dtype == torch.float32 else 2.0**-7 * absolute[0]
    assert ((actual[0].double() - expected[0]).abs() <= 2e-5 + rounded).all()
    torch.testing.assert_close(actual[1].double(), expected[1], rtol=0, atol=2e-5)


BATCH = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 5, 33, 70]), st.sampled_from([0, 1, 63, 64, 116, 1023, 1040, 2200])),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    st.sampled_from(ALL_SHAPES),
    BATCH,
    st.sampled_from([8, 64, 48]),
    st.sampled_from([0, 1, 50, 1100]),
    st.sampled_from([0.0, 4.0]),
    st.booleans(),
    SEED,
)
def test_attention_equals_the_reference(dtype, shape, batch, page_size, window, softcap, trees, seed):
    rows, contexts = [r for r, _ in batch], [c for _, c in batch]
    case = Case.random(shape, rows, contexts, page_size, seed, dtype)
    g = torch.Generator().manual_seed(seed)
    masks = [random_tree(n, g) if trees and s != 1 else None for s, n in enumerate(rows)]
    options = {"softcap": softcap, "window": window, "positions": case.positions(masks), "tree_masks": masks}
    absolute = case.absolute().reference(**options) if dtype == torch.bfloat16 else None
    assert_same(case.attend(**options), case.reference(**options), absolute)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SHAPES),
    BATCH,
    st.sampled_from([(1, 16), (16, 16), (64, 64), (128, 128), (32, 8)]),
    st.sampled_from([0.0, 0.3, 0.8]),
    st.booleans(),
    st.sampled_from([0, 70]),
    st.booleans(),
    SEED,
)
def test_sparse_attention_equals_the_masked_reference(
    dtype, shape, batch, blocks, density, per_query_head, window, trees, seed
):
    rows, contexts = [r for r, _ in batch], [c for _, c in batch]
    case = Case.random(shape, rows, contexts, 16, seed, dtype)
    g = torch.Generator().manual_seed(seed)
    masks = [random_tree(n, g) if trees else None for n in rows]
    index = random_index(case, shape[0] if per_query_head else shape[1], *blocks, density, g)
    options = {"window": window, "positions": case.positions(masks), "tree_masks": masks}
    past, new = index.split()
    every = []
    for one in (case, case.absolute()) if dtype == torch.bfloat16 else (case,):
        exact = one.new(torch.float64, **options)
        parts = dense.paged_attention(one.pages(torch.float64), exact, past), dense.ragged_attention(exact, new)
        every.append((*parts, dense.merge_states(*parts[0], *parts[1])))
    got = case.new(**options)
    kernels = (
        cpu.paged_attention(case.pages(), got, past),
        cpu.ragged_attention(got, new),
        case.attend(index, **options),
    )
    for actual, *expected in zip(kernels, *every, strict=True):
        assert_same(actual, *expected)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SHAPES), BATCH, SEED)
def test_a_full_index_is_dense_to_the_bit(dtype, shape, batch, seed):
    rows, contexts = [r for r, _ in batch], [c for _, c in batch]
    case = Case.random(shape, rows, contexts, 64, seed, dtype)
    full = BlockIndex.full(rows, contexts, num_heads=shape[1], block_q=64, block_k=64)
    plain, indexed = case.attend(), case.attend(full)
    assert torch.equal(plain[0], indexed[0])
    assert torch.equal(plain[1], indexed[1])


# --- the bits of a row -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_is_the_same_alone_and_in_a_batch(dtype, shape, threads):
    rows, contexts = [1, 33, 7, 80], [1500, 2113, 0, 1030]
    case = Case.random(shape, rows, contexts, 64, 1, dtype)
    torch.set_num_threads(threads)
    together = case.attend()
    torch.set_num_threads(1)
    for s, (n, context) in enumerate(zip(rows, contexts, strict=True)):
        lo = int(case.cu[s])
        for i in range(0, n, 6):
            alone = row_alone(case, s, context, list(range(i + 1)), i)
            assert torch.equal(alone, together[0][lo + i])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ALL_SHAPES)
@pytest.mark.parametrize("rows", [2, 17, 64, 65, 300])
def test_a_row_is_the_same_among_any_number_of_others(dtype, shape, rows):
    """The first rows of 300, with and without those behind them, alone and beside another sequence."""
    whole = Case.random(shape, [300, 40], [1040, 30], 64, 5, dtype)
    expected, _ = whole.attend()
    fewer = replace(whole, q=whole.q[:rows], k=whole.k[:rows], v=whole.v[:rows], tables=whole.tables[:1])
    fewer.rows, fewer.contexts = [rows], [1040]
    assert torch.equal(fewer.attend()[0], expected[:rows])
    assert torch.equal(row_alone(whole, 0, 1040, list(range(rows)), rows - 1), expected[rows - 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ALL_SHAPES)
@pytest.mark.parametrize("context", [0, 30, 64, 1000, 1023, 2113])
def test_a_tree_node_is_the_same_as_its_path_decoded_alone(dtype, shape, context):
    """The node's ancestors written to pages one by one and the node decoded as a single row: the same bits."""
    case = Case.random(shape, [33], [context], 64, 2, dtype)
    tree = random_tree(33, torch.Generator().manual_seed(3))
    out, _ = case.attend(tree_masks=[tree])
    for node in range(0, 33, 4):
        path = tree[node].nonzero().flatten().tolist()
        assert torch.equal(row_alone(case, 0, context, path, node), out[node])


def row_alone(case, s, context, path, row):
    """Row `row` of sequence `s` as a single decode row, all of `path` before it lying in pages."""
    lo, page_size = int(case.cu[s]), case.k_cache.shape[2]
    earlier = [lo + j for j in path[:-1]]
    pages = (context + len(path)) // page_size + 1
    caches = []
    for cache, new in ((case.k_cache, case.k), (case.v_cache, case.v)):
        tiles = cache[case.tables[s].long()].transpose(0, 1).flatten(1, 2)[:, :context]
        tokens = torch.cat([tiles, new[earlier].transpose(0, 1)], dim=1)
        padded = torch.nn.functional.pad(tokens, (0, 0, 0, pages * page_size - tokens.shape[1]))
        caches.append(padded.unflatten(1, (pages, page_size)).transpose(0, 1).contiguous())
    one = [x[lo + row : lo + row + 1] for x in (case.q, case.k, case.v)]
    table = torch.arange(pages, dtype=torch.int32).view(1, -1)
    return cpu.attention(Pages(*caches, table), Rows.of_sequence(*one, 0.2, context + len(path) - 1))[0][0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 50, 64, 333])
def test_prefill_in_chunks_is_prefill_at_once(dtype, chunk):
    heads, kv_heads, dim, length = 8, 2, 64, 1300 if chunk > 1 else 130
    case = Case.random((heads, kv_heads, dim), [length], [0], 64, 4, dtype)
    whole, _ = case.attend()
    pages = length // 64 + 1
    caches = [torch.zeros(pages, kv_heads, 64, dim, dtype=dtype) for _ in "kv"]
    table = torch.arange(pages, dtype=torch.int32).view(1, -1)
    for start in range(0, length, chunk):
        new = slice(start, min(start + chunk, length))
        rows = Rows.of_sequence(case.q[new], case.k[new], case.v[new], 0.2, start)
        out, _ = cpu.attention(Pages(*caches, table), rows)
        assert torch.equal(out, whole[new])
        at = torch.arange(new.start, new.stop)
        for cache, x in zip(caches, (case.k, case.v), strict=True):
            cache[at // 64, :, at % 64] = x[new]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ALL_SHAPES)
def test_int8_pages_equal_their_dequantised_selves_to_the_bit(dtype, shape):
    case = Case.random(shape, [1, 9, 33], [1100, 64, 30], 64, 6, dtype)
    rows = case.new(tree_masks=[None, None, random_tree(33, torch.Generator().manual_seed(7))])
    (k8, k_scale), (v8, v_scale) = quantize(case.k_cache), quantize(case.v_cache)
    wide = Pages(dequantize(k8, k_scale, dtype), dequantize(v8, v_scale, dtype), case.tables)
    narrow = Pages(k8, v8, case.tables, k_scale, v_scale)
    assert torch.equal(cpu.attention(narrow, rows)[0], cpu.attention(wide, rows)[0])
    for wrong in (replace(narrow, v_scale=None), replace(wide, k_scale=k_scale)):
        with pytest.raises(ValueError, match="int8 pages need"):
            cpu.attention(wrong, rows)


@pytest.mark.parametrize(("activations", "kept"), [DTYPES, DTYPES[::-1]])
def test_pages_may_be_of_another_dtype_than_queries_and_results(activations, kept):
    """Queries are rounded to the dtype of the products, results to that of the queries, and nothing else."""
    case = Case.random((8, 2, 64), [9, 70], [1100, 30], 64, 8, kept)
    rows = case.new()
    rows.q = (rows.q.float() * (1 + 2**-7)).to(activations)
    mixed, _ = cpu.attention(case.pages(), rows)
    expected, _ = cpu.attention(case.pages(), replace(rows, q=rows.q.to(kept)))
    assert mixed.dtype == activations
    if activations == torch.bfloat16:
        assert torch.equal(mixed, expected.to(activations))
    else:
        assert torch.equal(mixed.to(kept), expected)


def test_new_keys_in_float32_are_rounded_as_pages_hold_them():
    """As the layers in one call hand them over."""
    case = Case.random((8, 2, 64), [9, 70], [1100, 30], 64, 8, torch.bfloat16)
    rows, wide = case.new(), case.new(torch.float32)
    wide.k, wide.v = (x * (1 + 2**-11) for x in (wide.k, wide.v))
    arguments = cpu.Arguments.of(rows)
    arguments.pages(case.pages())
    arguments.new_keys(wide.k, wide.v)
    arguments.call.new_kind = cpu.KINDS[torch.float32]
    expected = cpu.attention(case.pages(), replace(rows, k=wide.k.bfloat16(), v=wide.v.bfloat16()))
    assert torch.equal(arguments.run()[0], expected[0])


def test_what_the_kernels_do_not_multiply_is_refused():
    case = Case.random((2, 1, 64), [3], [70], 16, 1, torch.bfloat16)
    for pages, rows, words in (
        (case.pages(torch.float32), case.new(), "do not go with new keys"),
        (case.pages(torch.float16), case.new(torch.float16), "must be float32 or bfloat16"),
        (case.pages(), replace(case.new(), scale=-1.0), "positive scale"),
    ):
        with pytest.raises(ValueError, match=words):
            cpu.attention(pages, rows)
    odd = Case.random((2, 1, 15), [3], [70], 16, 1, torch.bfloat16)
    with pytest.raises(ValueError, match="even head_dim"):
        odd.attend()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_inputs_are_read_in_place(dtype):
    """q, k, v as transformers hands them over: views [1, H, T, D] with heads outermost."""
    case = Case.random((8, 2, 64), [9], [100], 64, 5, dtype)
    plain = case.attend()
    case.q, case.k, case.v = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (case.q, case.k, case.v))
    assert not case.q.is_contiguous()
    assert torch.equal(case.attend()[0], plain[0])


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="elsewhere denormals are not flushed")
def test_denormal_numbers_count_as_zero_during_a_call_and_not_after():
    """Each would cost an assist of a hundred cycles, and dead dimensions of a model are full of them."""
    tiny = 1e-40
    case = Case.random((2, 2, 64), [3], [70], 16, seed=1)
    case.v.fill_(tiny)
    case.v_cache.fill_(tiny)
    assert case.attend()[0].count_nonzero() == 0
    assert cpu.linear(torch.full((3, 64), tiny), torch.ones(8, 64)).count_nonzero() == 0
    assert (torch.full((3,), tiny) * torch.ones(3)).count_nonzero() == 3


def test_float32_and_bfloat16_on_a_cpu_take_the_kernels_and_float64_the_reference():
    device = torch.device("cpu")
    for dtype in DTYPES:
        assert select_kernels(device, dtype).name == "cpu-c++"
        assert select_kernels(device, dtype).row_invariant
    assert select_kernels(device, torch.float64) is TORCH
    assert not TORCH.row_invariant


def test_without_a_compiler_torch_serves_and_says_so(monkeypatch, caplog, tmp_path):
    from sparse_attn import kernels
    from sparse_attn.kernels.cpu import build as cpu_build

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    for cached in (cpu_build.library, kernels._cpu_kernels):
        cached.cache_clear()
    try:
        assert select_kernels(torch.device("cpu"), torch.float32) is TORCH
        assert "no C++ compiler" in caplog.text
    finally:
        monkeypatch.undo()
        for cached in (cpu_build.library, kernels._cpu_kernels):
            cached.cache_clear()


# --- linear layers -----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 70), st.integers(1, 1100), st.integers(1, 200), st.booleans(), SEED)
def test_linear_equals_torch_and_its_rows_do_not_depend_on_one_another(rows, inner, outer, with_bias, seed):
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(rows, inner, generator=g), torch.randn(outer, inner, generator=g)
    bias = torch.randn(outer, generator=g) if with_bias else None
    y = cpu.linear(x, w, bias)
    exact = torch.nn.functional.linear(x.double(), w.double(), bias.double() if with_bias else None)
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=2e-6 * inner**0.5 * 10)
    for r in range(0, rows, 7):
        assert torch.equal(cpu.linear(x[r : r + 1], w, bias)[0], y[r])


def skipping(share, gate=0):
    return Skip(share, gate, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(ALL_SHAPES),
    BATCH,
    st.sampled_from([64, 48]),
    st.sampled_from([0, 1100]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 60.0, 500.0]),
    st.sampled_from([0, 1050]),
    SEED,
)
def test_tiles_are_skipped_as_in_the_reference(
    dtype, shape, batch, page_size, window, sparse, trees, share, gate, seed
):
    rows, contexts = [r for r, _ in batch], [c for _, c in batch]
    case = Case.random(shape, rows, contexts, page_size, seed, dtype)
    g = torch.Generator().manual_seed(seed)
    masks = [random_tree(n, g) if trees and 0 < n < 40 else None for n in rows]
    options = {"window": window, "positions": case.positions(masks), "tree_masks": masks}
    index = random_index(case, shape[1], 32, 64, 0.6, g) if sparse else None
    ours, theirs = skipping(share, gate), skipping(share, gate)
    expected = case.reference(index, skip=theirs, **options)
    absolute = case.absolute().reference(index, skip=skipping(share, gate), **options)
    assert_same(case.attend(index, skip=ours, **options), expected, absolute)
    assert ours.counts.tolist() == theirs.counts.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=6, deadline=None)
@given(st.sampled_from(SHAPES), BATCH, SEED)
def test_a_lambda_near_zero_is_dense_to_the_last_bit(dtype, shape, batch, seed):
    case = Case.random(shape, [r for r, _ in batch], [c for _, c in batch], 64, seed, dtype)
    dense_out, dense_lse = case.attend()
    for rule in (skipping(0.0), skipping(1e-30), skipping(1e6, gate=10_000)):
        out, lse = case.attend(skip=rule)
        assert torch.equal(out, dense_out)
        assert torch.equal(lse, dense_lse)
        assert rule.counts[1] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [300.0, 1500.0])
def test_what_a_row_skips_does_not_depend_on_its_company(dtype, share):
    """A prompt whole, in two chunks, and its last row in decode, whose chunks of keys go to several threads."""
    heads, kv_heads, dim, n = 8, 2, 64, 2300
    whole = Case.random((heads, kv_heads, dim), [n], [0], 64, 5, dtype)
    rule = skipping(share)
    out, lse = whole.attend(skip=rule)
    assert 0.05 < rule.counts[1] / rule.counts[0] < 0.95
    for cut in (64, 1000, n - 1):
        later = Case.random((heads, kv_heads, dim), [n - cut], [cut], 64, 6, dtype)
        later.q, later.k, later.v = (x[cut:] for x in (whole.q, whole.k, whole.v))
        for i in range(cut):
            page = later.tables[0, i // 64]
            later.k_cache[page, :, i % 64], later.v_cache[page, :, i % 64] = whole.k[i], whole.v[i]
        chunk = later.attend(skip=skipping(share))
        assert torch.equal(chunk[0], out[cut:])
        assert torch.equal(chunk[1], lse[cut:])


def test_what_is_left_out_weighs_less_than_lambda_times_the_largest():
    case = Case.random((8, 2, 64), [130], [3000], 64, 7)
    full = case.reference()[1].exp()
    for share in (60.0, 500.0):
        rule = skipping(share)
        kept = case.reference(skip=rule)[1].exp()
        assert rule.counts[1] > 0
        assert (kept <= full * (1 + 1e-9)).all()
        assert (full - kept <= share * kept).all()
