"""Products with weights that stay as they are stored: their numbers, and the same bits for a row among any others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_attn.kernels import select_kernels
from sparse_attn.kernels.cpu import features
from sparse_attn.kernels.cpu.packed import (
    KINDS,
    PackedWeight,
    Products,
    linear,
    pack,
    pack_tensor,
    products_with,
    row_bytes,
)

pytestmark = pytest.mark.skipif(
    not select_kernels(torch.device("cpu"), torch.float32).row_invariant, reason="no C++ compiler for the CPU kernels"
)
BLOCKS = KINDS[3:]
OUTER, INNER = 72, 512  # half a task of columns at the end
NO_BFLOAT16 = pytest.mark.skipif(not features.multiplies_bfloat16(), reason="no products of bfloat16 here")
PRODUCTS = ["float32", pytest.param("bfloat16", marks=NO_BFLOAT16), "int8"]


def random_rows(kind: str, outer: int = OUTER, inner: int = INNER) -> np.ndarray:
    """Blocks of random bits, whose scales are such as weights have."""
    random = np.random.default_rng(7)
    count = 256 if kind.endswith("K") else 32
    blocks = random.integers(0, 256, (outer, inner // count, row_bytes(kind, count)), dtype=np.uint8)
    places = {"Q6_K": [208], "Q4_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2]}.get(kind, [0])
    for place in places:
        scales = (random.normal(size=(*blocks.shape[:2], 1)) * 0.01).astype(np.float16)
        blocks[..., place : place + 2] = scales.view(np.uint8)
    return blocks.reshape(outer, -1)


def dequantized(rows: np.ndarray, kind: str) -> Tensor:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(rows, GGMLQuantizationType[kind]).astype(np.float32))


def weight_of(kind: str, products: Products, outer: int = OUTER, inner: int = INNER) -> tuple[PackedWeight, Tensor]:
    """A packed weight and its numbers."""
    if kind in BLOCKS:
        rows = random_rows(kind, outer, inner)
        return pack(torch.from_numpy(rows), kind, inner, products=products), dequantized(rows, kind)
    plain = torch.randn(outer, inner, generator=torch.Generator().manual_seed(3))
    packed = pack_tensor(plain, kind, products=products)
    if kind == "INT8":
        assert packed.scale is not None
        return packed, (plain / packed.scale[:, None]).round() * packed.scale[:, None]
    return packed, plain.to(torch.bfloat16 if kind == "BF16" else torch.float16).float()


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_numbers(kind: str, products: Products) -> None:
    packed, plain = weight_of(kind, products)
    x, bias = torch.randn(37, INNER), torch.randn(OUTER)
    [got] = linear(x, [packed], [bias])
    assert error(got, x @ plain.T + bias) < {"float32": 2e-6, "bfloat16": 4e-3, "int8": 1e-2}[products]
    if packed.products == "bfloat16":  # it is rounding that is left: with numbers rounded on both sides next to none is
        exact = x.bfloat16().double() @ plain.bfloat16().double().T + bias
        assert error(got, exact) < (2e-3 if kind == "INT8" else 1e-4)


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_among_any_number_of_rows(kind: str, products: Products) -> None:
    packed, _ = weight_of(kind, products)
    x = torch.randn(300, INNER)
    [together] = linear(x, [packed], [None])
    for count in range(1, 300):
        first = (7 * count) % (300 - count)
        assert torch.equal(linear(x[first : first + count], [packed], [None])[0], together[first : first + count])


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("kind", ["Q4_K", "BF16"])
def test_wide_rows_have_the_same_bits_though_their_sums_are_put_down_in_between(kind: str, products: Products) -> None:
    inner = 4352  # 136 tiles: more than a core's second cache is given of a row at a time
    packed, _ = weight_of(kind, products, OUTER, inner)
    x = torch.randn(530, inner)  # a task of rows, and 18 beyond
    [whole] = linear(x, [packed], [None])
    for rows in (slice(0, 1), slice(100, 140), slice(515, 530)):
        assert torch.equal(linear(x[rows], [packed], [None])[0], whole[rows])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_matrix(kind: str) -> None:
    packed, plain = weight_of(kind, False)
    ids = torch.tensor([[0, OUTER - 1, 5], [17, 5, 16]])
    torch.testing.assert_close(packed.rows(ids), plain[ids], rtol=0, atol=float(plain.abs().max()) * 1e-6)
    with pytest.raises(IndexError, match=f"a matrix that has {OUTER}"):
        packed.rows(torch.tensor([OUTER]))


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize(("outer", "inner", "rows"), [(1, 1, 1), (5, 33, 3), (33, 31, 70), (100, 65, 17), (16, 32, 0)])
def test_odd_shapes(outer: int, inner: int, rows: int, products: Products) -> None:
    torch.manual_seed(1)  # of a few numbers the mean error varies
    for kind in ("BF16", "F16", "INT8"):
        packed, plain = weight_of(kind, products, outer, inner)
        wide = torch.randn(rows, inner + 3)
        [got] = linear(wide[:, :inner], [packed], [None])
        assert got.shape == (rows, outer)
        if rows:
            assert error(got, wide[:, :inner] @ plain.T) < (2e-6 if products == "float32" else 1e-2)


@pytest.mark.parametrize("products", PRODUCTS)
def test_several_products_at_once_are_those_of_each(products: Products) -> None:
    kinds = (("Q4_1", 40), ("Q8_0", 24), ("BF16", 48), ("Q5_0", 96))
    weights = [weight_of(kind, products, outer)[0] for kind, outer in kinds]
    biases = [torch.randn(40), None, None, torch.randn(96)]
    for rows in (1, 50):
        x = torch.randn(rows, INNER)
        for got, weight, bias in zip(linear(x, weights, biases), weights, biases, strict=True):
            assert torch.equal(got, linear(x, [weight], [bias])[0])


@pytest.mark.parametrize("products", PRODUCTS)
def test_results_that_go_past_the_caches_are_the_same(products: Products) -> None:
    packed, _ = weight_of("BF16", products, 1040, 64)
    x = torch.randn(1100, 64)
    [together] = linear(x, [packed], [None])
    for first, count in ((0, 1), (333, 40), (1099, 1)):
        assert torch.equal(linear(x[first : first + count], [packed], [None])[0], together[first : first + count])


def test_rows_in_another_order() -> None:
    rows = random_rows("Q4_0")
    order = torch.randperm(OUTER)
    packed = pack(torch.from_numpy(rows), "Q4_0", INNER, order=order, products="float32")
    torch.testing.assert_close(packed.rows(torch.arange(OUTER)), dequantized(rows, "Q4_0")[order], rtol=0, atol=1e-7)


def test_a_weight_takes_little_more_than_its_file() -> None:
    for kind in BLOCKS:
        rows = random_rows(kind, 576, 1536)
        assert pack(torch.from_numpy(rows), kind, 1536, products="float32").num_bytes < rows.nbytes * 1.04


def test_what_does_not_go_together_is_refused() -> None:
    rows = torch.from_numpy(random_rows("Q4_0"))
    with pytest.raises(ValueError, match="are not 512 columns of Q4_1"):
        pack(rows, "Q4_1", INNER, products="float32")
    with pytest.raises(ValueError, match="are not 100 columns of Q4_0"):
        pack(rows, "Q4_0", 100, products="float32")
    with pytest.raises(ValueError, match="a scale a row goes with INT8 alone"):
        pack(rows, "Q4_0", INNER, scale=torch.ones(OUTER), products="float32")
    with pytest.raises(ValueError, match="is not one of 72 rows"):
        pack(rows, "Q4_0", INNER, order=torch.full((OUTER,), OUTER), products="float32")
    packed = pack(rows, "Q4_0", INNER, products="float32")
    with pytest.raises(ValueError, match="do not go with weights"):
        linear(torch.randn(2, 64), [packed], [None])
    with pytest.raises(ValueError, match="a bias"):
        linear(torch.randn(2, INNER), [packed], [torch.zeros(3)])


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_int8_are_those_of_the_rounded_numbers(kind: str) -> None:
    packed, plain = weight_of(kind, "int8")
    if packed.products != "int8":
        pytest.skip("weights of floats")
    x = torch.randn(9, INNER) * torch.logspace(-3, 3, INNER)
    parts = x.view(9, -1, 32)
    scale = parts.abs().amax(-1, keepdim=True) / 127
    rounded = ((parts / scale).round() * scale).view_as(x).double()
    assert error(linear(x, [packed], [None])[0], rounded @ plain.double().T) < 1e-5
    assert not linear(torch.zeros(1, INNER), [packed], [None])[0].any()


def test_what_products_are_of() -> None:
    narrow: Products = "bfloat16" if features.multiplies_bfloat16() else "float32"
    assert [products_with("Q4_1", wanted) for wanted in ("float32", "bfloat16", "int8")] == ["float32", narrow, "int8"]
    assert [products_with("BF16", wanted) for wanted in ("float32", "int8")] == ["float32", narrow]


def test_a_part_of_a_matrix_is_over_its_panels() -> None:
    packed, _ = weight_of("Q4_1", "float32")
    x = torch.randn(5, INNER)
    [whole] = linear(x, [packed], [None])
    for start, count in ((0, 24), (16, 40), (48, 24)):
        assert torch.equal(linear(x, [packed.narrow(start, count)], [None])[0], whole[:, start : start + count])
    for start, count in ((8, 16), (64, 16)):
        with pytest.raises(ValueError, match="panel"):
            packed.narrow(start, count)
