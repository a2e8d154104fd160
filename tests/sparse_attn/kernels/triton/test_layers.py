"""What lies between the products of a layer: the numbers of transformers' modules, rounded where they round."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from sparse_attn.kernels.triton.launch import INTERPRETED
from sparse_attn.kernels.triton.layers import add_rms_norm, place, silu_mul
from sparse_attn.kv.quant import dequantize, quantize

DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3}


def noise(*sizes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As LlamaRMSNorm."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("residual", [True, False])
def test_residual_and_norm(dtype: torch.dtype, residual: bool) -> None:
    x, weight = noise(3, 48, dtype=dtype), noise(40, dtype=dtype, seed=1)
    x = x[:, :40]  # rows of something wider
    delta = noise(3, 40, dtype=dtype, seed=2) if residual else None
    total, out = add_rms_norm(x, delta, weight, 1e-5)
    expected = x + delta if delta is not None else x
    torch.testing.assert_close(total, expected, rtol=0, atol=0)
    torch.testing.assert_close(out, normed(expected, weight, 1e-5), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_gated_activation(dtype: torch.dtype) -> None:
    gate, up = noise(2, 1100, dtype=dtype) * 4, noise(2, 1100, dtype=dtype, seed=1)
    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(silu_mul(gate, up), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """As apply_rotary_pos_emb: x [T, H, D]."""
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


@pytest.mark.parametrize("dim", [16, 24])
@pytest.mark.parametrize(("rope", "norm"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("int8", [False, True])
def test_queries_keys_and_values_are_placed(dim: int, rope: bool, norm: bool, int8: bool) -> None:
    rows, heads, kv_heads, size = 4, 4, 2, 8
    joint = noise(rows, (heads + 2 * kv_heads) * dim)
    q, k, v = joint.split([heads * dim, kv_heads * dim, kv_heads * dim], 1)  # rows are strided
    angle = noise(rows, dim // 2, seed=3).repeat(1, 2)
    angles = (angle.cos(), angle.sin()) if rope else None
    norms = (noise(dim, seed=4), noise(dim, seed=5), 1e-6) if norm else None
    kind = torch.int8 if int8 else torch.float32
    pages = tuple(torch.zeros(3, kv_heads, size, dim, dtype=kind, device=DEVICE) for _ in range(2))
    scales = tuple(torch.zeros(3, kv_heads, size, dtype=torch.float16, device=DEVICE) for _ in range(2))
    slots = torch.tensor([3, 8, -1, 23], device=DEVICE)
    got = place(q, k, v, angles, norms, pages, slots, scales if int8 else None)  # type: ignore[arg-type]

    expected = [x.reshape(rows, -1, dim) for x in (q, k, v)]
    for i in range(2):
        if norms is not None:
            expected[i] = normed(expected[i], norms[i], norms[2])
        if angles is not None:
            expected[i] = rotated(expected[i], *angles)
    torch.testing.assert_close(got, expected[0], rtol=2e-6, atol=2e-6)
    for page, scale, new in zip(pages, scales, expected[1:], strict=True):
        for row, slot in enumerate(slots.tolist()):
            if slot < 0:
                continue
            held = page[slot // size, :, slot % size]
            if not int8:
                torch.testing.assert_close(held, new[row], rtol=2e-6, atol=2e-6)
                continue
            codes, own = quantize(new[row])
            assert (scale[slot // size, :, slot % size] == own).all()
            assert ((held.int() - codes.int()).abs() <= 1).all()  # a rotation that rounds otherwise may cross a half
            assert (held == codes).float().mean() > 0.95
        written = {int(slot) for slot in slots if slot >= 0}
        empty = [n for n in range(3 * size) if n not in written]
        assert not page.transpose(1, 2).reshape(3 * size, -1)[empty].any()


def test_a_key_that_is_no_number_stays_none() -> None:
    k = noise(1, 16)
    k[0, 3] = torch.nan
    pages = tuple(torch.zeros(1, 1, 4, 16, dtype=torch.int8, device=DEVICE) for _ in range(2))
    scales = tuple(torch.zeros(1, 1, 4, dtype=torch.float16, device=DEVICE) for _ in range(2))
    place(noise(1, 16), k, k, None, None, pages, torch.tensor([2], device=DEVICE), scales)  # type: ignore[arg-type]
    assert dequantize(pages[0][0, 0, 2], scales[0][0, 0, 2]).isnan().all()
