"""RMS norms are found by what they compute, and keep their numbers."""

import pytest
import torch

from service.engine.runner.fused_norms import fuse_norms
from sparse_attn.kernels import select_kernels


class Norm(torch.nn.Module):
    """An RMS norm as transformers writes it; ``shift`` is 1 in Gemma's."""

    def __init__(self, dim: int, shift: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(dim, generator=torch.Generator().manual_seed(2)))
        self.variance_epsilon = 1e-5
        self.shift = shift

    def forward(self, x):
        return (self.shift + self.weight) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


@pytest.fixture(autouse=True)
def kernels():
    if not select_kernels(torch.device("cpu"), torch.float32).row_invariant:
        pytest.skip("no C++ compiler for the CPU kernels")


@pytest.mark.parametrize("shift", [0.0, 1.0])  # Llama's, Gemma's
def test_a_norm_keeps_its_numbers_and_every_row_its_bits(shift):
    norm, x = Norm(448, shift=shift), torch.randn(1, 33, 448)
    with torch.no_grad():
        expected = norm(x)
        assert fuse_norms(norm) == 1
        assert fuse_norms(norm) == 0  # it is already
        torch.testing.assert_close(norm(x), expected)
        assert torch.equal(norm(x[:, 7:8]), norm(x)[:, 7:8])


@pytest.mark.parametrize(
    "other", [Norm(16, shift=0.5), torch.nn.LayerNorm(16), torch.nn.Linear(16, 16), Norm(16).double()]
)
def test_what_computes_something_else_is_left_alone(other):
    assert fuse_norms(other) == 0
    assert "forward" not in vars(other)


def test_training_and_other_dtypes_take_the_modules_own_forward():
    norm, x = Norm(16), torch.randn(3, 16)
    fuse_norms(norm)
    norm(x).sum().backward()
    assert norm.weight.grad is not None
    with torch.no_grad():
        assert norm(x.double()).dtype == torch.float64


def test_a_model_has_all_its_norms_fused(random_llama):
    model = random_llama(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, head_dim=16)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model(ids).logits
        assert fuse_norms(model) == 2 * 2 + 1
        torch.testing.assert_close(model(ids).logits, expected)
