"""RMS norms, gated activations and writes into pages of `sparse_attn.kernels.cpu.rows` against torch."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_attn.kernels import select_kernels
from sparse_attn.kernels.cpu import rows as cpu_rows

if not select_kernels(torch.device("cpu"), torch.float32).row_invariant:
    pytest.skip("no C++ compiler for the CPU kernels", allow_module_level=True)

SEED = st.integers(0, 2**20)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 400), st.integers(1, 700), SEED)
def test_a_norm_equals_torch_and_its_rows_do_not_depend_on_one_another(rows, dim, seed):
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(1, rows, dim + 3, generator=g)[..., :dim], torch.randn(dim, generator=g)
    y = cpu_rows.rms_norm(x, weight, 1e-6)
    expected = torch.nn.functional.rms_norm(x.double(), (dim,), weight.double(), 1e-6)
    torch.testing.assert_close(y.double(), expected, rtol=2e-6, atol=1e-6)
    for r in range(0, rows, 7):
        assert torch.equal(cpu_rows.rms_norm(x[0, r], weight, 1e-6), y[0, r])


def test_a_norm_refuses_what_does_not_go_together():
    with pytest.raises(ValueError, match="do not go with a weight"):
        cpu_rows.rms_norm(torch.zeros(2, 8), torch.ones(7), 1e-6)
    with pytest.raises(ValueError, match="float64"):
        cpu_rows.rms_norm(torch.zeros(2, 8, dtype=torch.float64), torch.ones(8), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("inner", [(16,), ()])  # keys, and their scales
def test_rows_are_written_where_torch_writes_them(dtype, inner):
    g = torch.Generator().manual_seed(1)
    source = torch.randint(-99, 99, (5, 6, *inner), generator=g).to(dtype)[:, 1:4]
    room = torch.zeros(7, 9, 4, *inner, dtype=dtype)  # pages that lie apart, as those of one layer do
    pages, slots = room[:, 2:5], torch.tensor([3, -1, 8, 0, 21])
    expected = room.clone()
    expected[:, 2:5][slots // 4, :, slots % 4] = source
    cpu_rows.write_rows(source, pages, slots)
    assert torch.equal(room, expected)
    cpu_rows.write_rows(source[:0], pages, slots[:0])
    assert torch.equal(room, expected)


def test_a_write_refuses_what_does_not_go_together():
    pages, slots = torch.zeros(3, 2, 4, 16), torch.zeros(5, dtype=torch.int64)
    for source in (torch.zeros(5, 2, 8), torch.zeros(5, 3, 16), torch.zeros(4, 2, 16), torch.zeros(5, 2, 16).double()):
        with pytest.raises(ValueError, match="do not go into"):
            cpu_rows.write_rows(source, pages, slots)
    with pytest.raises(ValueError, match="do not go into"):
        cpu_rows.write_rows(torch.zeros(5, 2, 16), pages.transpose(2, 3).contiguous().transpose(2, 3), slots)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(1, 5000), SEED, st.sampled_from(cpu_rows.ACTIVATIONS))
def test_a_gated_activation_equals_torch_and_its_values_do_not_depend_on_one_another(rows, width, seed, activation):
    g = torch.Generator().manual_seed(seed)
    gate, up = torch.randn(rows, width, generator=g) * 8, torch.randn(rows, width, generator=g)
    plain = {"silu": torch.nn.functional.silu, "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh")}
    expected = plain[activation](gate.double()) * up.double()
    y = cpu_rows.gate_mul(gate, up.clone(), activation)
    torch.testing.assert_close(y.double(), expected, rtol=2e-6, atol=1e-6 if activation == "gelu_tanh" else 1e-30)
    for r in range(0, rows, 7):
        half = gate[r, width // 2 :], up[r, width // 2 :].clone()
        assert torch.equal(cpu_rows.gate_mul(*half, activation), y[r, width // 2 :])


@pytest.mark.parametrize("activation", cpu_rows.ACTIVATIONS)
def test_a_gate_of_extreme_values_gives_no_nonsense(activation):
    gate = torch.tensor([-1e4, -90.0, -0.0, 90.0, 1e30, torch.nan])
    y = cpu_rows.gate_mul(gate, torch.ones(6), activation)
    assert y[:3].abs().max() < 1e-30
    assert y[3:5].tolist() == gate[3:5].tolist()
    assert y[5].isnan()


def test_a_gate_refuses_what_does_not_go_together():
    with pytest.raises(ValueError, match="does not go with"):
        cpu_rows.gate_mul(torch.zeros(2, 8), torch.zeros(2, 7))
    with pytest.raises(ValueError, match="float64"):
        cpu_rows.gate_mul(torch.zeros(2, 8), torch.zeros(2, 8).double())
    with pytest.raises(ValueError, match="contiguous"):
        cpu_rows.gate_mul(torch.zeros(8, 2).T, torch.zeros(2, 8))
