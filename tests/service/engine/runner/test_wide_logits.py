"""Logits in float32 of a half-precision output layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from service.engine.runner import wide_logits
from service.engine.runner.wide_logits import widen_logits

from ..conftest import make_model


@pytest.mark.parametrize("bias", [True, False])
def test_sums_are_not_rounded(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_logits, "_product", lambda a, b: a.float() @ b.float())  # which a CPU has not for halves
    torch.manual_seed(0)
    head = nn.Linear(64, 50, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(1, 3, 64, dtype=torch.bfloat16)
    got = wide_logits._forward(head, x)
    assert got.dtype == torch.float32
    assert got.shape == (1, 3, 50)
    torch.testing.assert_close(got.bfloat16(), head(x), rtol=1e-2, atol=1e-2)
    assert (got != got.bfloat16().float()).any()


def test_a_cpus_output_layer_is_left_as_it_is() -> None:
    assert not widen_logits(make_model(dtype=torch.bfloat16))


@pytest.mark.gpu
def test_a_gpu_gives_float32() -> None:
    model = make_model(dtype=torch.bfloat16).cuda()
    assert widen_logits(model)
    assert model(input_ids=torch.tensor([[5, 6]], device="cuda")).logits.dtype == torch.float32
