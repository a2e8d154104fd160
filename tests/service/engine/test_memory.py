"""Too little memory, for the weights or for the pages, is one sentence at the start."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.kv import layout
from service.engine.kv.layout import make_pool
from service.engine.loading import device
from service.engine.loading.checkpoint import load_model
from service.errors import ModelError

from .conftest import make_engine, make_model


def test_weights_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 112.00 MiB.\nMore lines.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ModelError, match="does not fit into the memory of cpu") as refused:
        load_model(str(tmp_path))
    assert "--tp" in refused.value.detail


def test_pages_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", full)
    with pytest.raises(ModelError, match=r"too little memory: a KV pool of \d+ pages needs .* GiB") as refused:
        make_pool(engine.loaded, EngineConfig(dtype="float64", kv_memory=1 << 24))
    assert "lower kv_memory" in refused.value.detail


def test_pages_that_do_not_go_beside_the_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    monkeypatch.setattr(device, "available_memory", lambda *_: 1 << 30)
    with pytest.raises(ModelError, match=r"1\.1 GB for KV beside .* of weights; 1\.1 GB are free") as refused:
        Engine.from_pretrained(str(tmp_path), EngineConfig(device="cpu", kv_memory=1 << 30))
    assert "Lower FOLIO_KV_MEMORY" in refused.value.detail


def test_a_gpu_gives_a_share_of_what_the_weights_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "available_memory", lambda device: 100 << 30 if device == "cuda" else None)
    assert layout.kv_memory(EngineConfig(device="cuda")) == int(0.85 * (100 << 30))
    assert layout.kv_memory(EngineConfig(device="cuda", kv_memory=5)) == 5
    assert layout.kv_memory(EngineConfig(device="cpu")) == 2 << 30
    assert layout.kv_memory(EngineConfig(device="cuda"), shared=True) == 2 << 30


def test_memory_for_less_than_a_page() -> None:
    engine = make_engine()
    with pytest.raises(ModelError, match=r"100 bytes for KV .FOLIO_KV_MEMORY. do not hold one page"):
        make_pool(engine.loaded, EngineConfig(dtype="float64", kv_memory=100))
