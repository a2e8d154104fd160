"""int8 codes and their float16 scales: half a step of error, whatever the numbers."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_attn.kv.quant import LARGEST_SCALE, LEVELS, SCALE, dequantize, quantize


@given(st.integers(0, 10_000), st.floats(-3, 6))
def test_the_error_is_half_a_step(seed, magnitude):
    x = torch.randn(7, 3, 16, generator=torch.Generator().manual_seed(seed)) * 10**magnitude
    codes, scale = quantize(x)
    assert (codes.dtype, scale.dtype, scale.shape) == (torch.int8, SCALE, x.shape[:-1])
    step = x.abs().amax(-1, keepdim=True) / LEVELS
    # A scale of few bits is a little smaller or larger, and the largest number then lies a little beyond the last code.
    # Below 2**-14 it has fewer bits still: it is a multiple of 2**-24.
    assert ((dequantize(codes, scale) - x).abs() <= 0.5 * step * (1 + 2**-10) + LEVELS * 2**-25).all()


def test_numbers_that_float16_cannot_scale_saturate_or_vanish():
    huge, tiny = torch.tensor([3e38, -1.0]), torch.tensor([1e-9, 0.0])
    codes, scale = quantize(torch.stack([huge, tiny, torch.zeros(2)]))
    back = dequantize(codes, scale)
    assert back[0].tolist() == [LEVELS * LARGEST_SCALE, 0]
    assert (back[1:] == 0).all()


def test_the_kernel_reads_every_scale():
    """As `half` of simd.h does: the bits moved to float32, and its exponent mended."""
    bits = torch.arange(1, 0x7C00, dtype=torch.int16)  # all positive and finite ones, subnormal ones too
    wide = (bits.int() << 13).view(torch.float32) * 2.0**112
    assert torch.equal(wide, bits.view(torch.float16).float())
