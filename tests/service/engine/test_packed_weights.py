"""Engines over weights that stay as they are stored: nothing that depends on company, and fused as the modules are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from service.engine.async_engine import Generation
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import LoadedModel, load_model, prepare
from service.engine.loading.precision import Activations
from service.engine.params import SamplingParams
from service.engine.runner import fused_layers
from service.engine.runner.packed_layers import pack_model
from sparse_attn.kernels import select_kernels
from sparse_attn.kernels.cpu import features

from .conftest import generate, make_model
from .loading.conftest import write_gguf

pytestmark = pytest.mark.skipif(
    not select_kernels(torch.device("cpu"), torch.float32).row_invariant, reason="no C++ compiler for the CPU kernels"
)
PART = [7, 11, 3, 42, 9, 5, 23, 8, 61, 30]
PROMPT = PART * 3 + [17, 2, 50, 33, 4] * 9 + PART * 4
OTHER = [(i * i) % 60 + 1 for i in range(90)]
DTYPES = [
    "float32",
    pytest.param(
        "bfloat16",
        marks=pytest.mark.skipif(not features.multiplies_bfloat16(), reason="no products of bfloat16 here"),
    ),
]
SIZES = {"hidden_size": 64, "intermediate_size": 128}


def loaded_model(family: str, kind: str, dtype: str, folder: Path, activations: Activations = "auto") -> LoadedModel:
    """A random model whose matrices are stored in this kind."""
    model = make_model(family, dtype=torch.float32, **SIZES)
    if kind not in ("BF16", "INT8"):
        path = folder / f"{family}-{kind}.gguf"
        path = path if path.exists() else write_gguf(path, model, kind=kind)
        return load_model(str(path), dtype, weights="stored", activations=activations)
    pack_model(model, kind, "int8" if activations == "int8" else "bfloat16" if dtype == "bfloat16" else "float32")
    return prepare(family, model)


def run(loaded: LoadedModel, prompts: list[list[int]], dtype: str, **options: Any) -> list[Any]:
    """Tokens and their log-probabilities, to the bit, of a new engine."""
    names = ("drafter", "temperature", "seed")
    wanted = {name: options.pop(name) for name in names if name in options}
    config = EngineConfig(
        **{"dtype": dtype, "kv_memory": 4 << 20, "page_size": 16, "step_tokens": 64, "max_running": 8, **options}
    )
    given = {"max_tokens": 24, "drafter": "none", "ignore_eos": True, "logprobs": 1, **wanted}
    return [_bits(result) for result in generate(Engine(loaded, config), prompts, SamplingParams(**given))]


def _bits(result: Generation) -> tuple[list[int], list[float]]:
    assert result.logprobs is not None
    return result.token_ids, [own.logprob for own in result.logprobs]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "BF16"), ("llama", "Q4_1"), ("qwen2", "Q5_0"), ("qwen3", "INT8"), ("gemma2", "Q8_0"), ("phi3", "Q4_0")],
)
def test_company_chunks_and_drafts_change_no_bit(family: str, kind: str, dtype: str, tmp_path: Path) -> None:
    loaded = loaded_model(family, kind, dtype, tmp_path)
    for sampling in ({}, {"temperature": 0.8, "seed": 5}):
        [expected] = run(loaded, [PROMPT], dtype, **sampling)
        assert run(loaded, [PROMPT], dtype, step_tokens=24, **sampling) == [expected]
        assert run(loaded, [OTHER, PROMPT, OTHER[:40]], dtype, **sampling)[1] == expected
        for drafter in ("suffix", "recycling:budget=6", "auto"):
            assert run(loaded, [PROMPT], dtype, drafter=drafter, **sampling) == [expected]


@pytest.mark.parametrize(("family", "kind"), [("llama", "Q4_1"), ("qwen3", "INT8")])
def test_company_chunks_and_drafts_change_no_bit_with_activations_of_int8(
    family: str, kind: str, tmp_path: Path
) -> None:
    loaded = loaded_model(family, kind, "float32", tmp_path, "int8")
    [expected] = run(loaded, [PROMPT], "float32")
    assert run(loaded, [PROMPT], "float32", step_tokens=24) == [expected]
    assert run(loaded, [OTHER, PROMPT, OTHER[:40]], "float32")[1] == expected
    assert run(loaded, [PROMPT], "float32", drafter="suffix") == [expected]
    assert run(loaded_model(family, kind, "float32", tmp_path), [PROMPT], "float32") != [expected]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"kv_dtype": "int8"}, {"step_tokens": 300}])
@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "Q4_1"), ("qwen3", "BF16"), ("phi3", "Q4_0"), ("gemma3", "Q8_0")]
)
def test_fused_layers_give_the_bits_of_the_modules(
    family: str, kind: str, options: dict[str, Any], dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = loaded_model(family, kind, dtype, tmp_path)
    assert "forward" in vars(loaded.model.base_model)
    fused = run(loaded, [PROMPT * 3, OTHER], dtype, **options)
    monkeypatch.setattr(fused_layers, "_chosen", lambda *_: None)
    assert run(loaded, [PROMPT * 3, OTHER], dtype, **options) == fused


def test_the_statistics_say_what_is_multiplied(tmp_path: Path) -> None:
    loaded = loaded_model("llama", "Q4_1", "float32", tmp_path)
    engine = Engine(loaded, EngineConfig(dtype="float32", kv_memory=4 << 20))
    assert engine.stats()["precision"] == f"weights Q4_1, products float32 ({features.family()})"
    assert "stored" in engine.salt
    rounded = loaded_model("llama", "Q4_1", "float32", tmp_path, "int8")
    other = Engine(rounded, EngineConfig(dtype="float32", activations="int8", kv_memory=4 << 20))
    assert other.stats()["precision"] == f"weights Q4_1, products int8 ({features.family()})"
    assert other.salt != engine.salt
    plain = Engine(prepare("llama", make_model(dtype=torch.float32)), EngineConfig(dtype="float32", kv_memory=4 << 20))
    assert plain.stats()["precision"] == "float32"
