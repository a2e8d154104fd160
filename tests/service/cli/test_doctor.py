"""What `folio doctor` says of device, kernels and search, on machines that this one is not."""

from __future__ import annotations

import pytest
import torch

from service.cli.doctor import _about_kernels, _guarded, _kernels, _torch
from service.settings import load_settings


def test_on_a_cpu_it_says_which_kernels_and_why() -> None:
    found = {f.subject: f for f in _kernels(load_settings(device="cpu"))}
    assert found["attention"].detail.startswith(("cpu-c++: our kernels", "plain torch"))
    assert found["cuda graphs"].detail == "none: for a GPU"
    assert found["linear layers"].detail.startswith("weights plain, products of float32 (")
    assert found["search"].detail == "FAISS on cpu"
    chosen = {f.subject: f for f in _kernels(load_settings(device="cpu", attention_backend="sdpa"))}
    assert "long dense runs by sdpa, chosen (FOLIO_ATTENTION_BACKEND)" in chosen["attention"].detail
    double = {f.subject: f for f in _kernels(load_settings(device="cpu", dtype="float64"))}
    assert (
        double["attention"].detail
        == "torch: plain torch: the C++ kernels are for float32 and bfloat16, this is float64"
    )


def test_a_gpu_without_triton_is_bad_news() -> None:
    assert _about_kernels("torch", "", "cuda", "bfloat16", "auto")[0] == "bad"
    state, detail = _about_kernels("triton", "flash-attn", "cuda", "bfloat16", "auto")
    assert state == "ok"
    assert detail == "triton: our kernels for GPUs; long dense runs by flash-attn, the best that is installed"


def test_a_device_that_cannot_be_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    (finding,) = _guarded(_torch, load_settings(device="cuda"))
    assert finding.state == "bad"
    assert "is a build without CUDA. Install torch's CUDA wheel, or use --device cpu." in finding.detail
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (finding,) = _guarded(_torch, load_settings(device="cuda"))
    assert "finds no GPU. Look at `nvidia-smi`" in finding.detail


def test_a_back_end_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = _guarded(_kernels, load_settings(device="cpu", attention_backend="flash-attn"))
    assert finding.state == "bad"
    assert "flash-attn" in finding.detail
