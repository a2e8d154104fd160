"""Weights that stay as they are stored: the model's numbers, what is chosen for a machine, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from service.engine.async_engine import AsyncEngine
from service.engine.loading import precision
from service.engine.loading.checkpoint import load_model
from service.engine.loading.precision import Precision, choose
from service.engine.loading.sources import find_model, smollm2_file
from service.engine.params import SamplingParams
from service.engine.runner.packed_layers import PackedEmbedding, PackedLinear, pack_model, packed_layers
from service.errors import ModelError
from sparse_attn.kernels import select_kernels
from sparse_attn.kernels.cpu import features
from sparse_attn.kernels.cpu.packed import Products

from ..conftest import make_model
from .conftest import write_gguf

pytestmark = pytest.mark.skipif(
    not select_kernels(torch.device("cpu"), torch.float32).row_invariant, reason="no C++ compiler for the CPU kernels"
)
Write = Callable[..., Path]
IDS = torch.tensor([[1, 5, 9, 33, 2, 60, 7, 7, 41, 5, 9, 33] * 3])
FAMILIES = ("llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3")


def quantised(path: Path, kind: str, family: str = "llama", **changes: Any) -> Path:
    """A random model as GGUF, its matrices in blocks of this kind."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, **({"query_pre_attn_scalar": 16} if "gemma" in family else {})}
    return write_gguf(path, make_model(family, dtype=torch.float32, **{**sizes, **changes}), kind=kind)


def plain_and_packed(path: Path, products: Products = "float32") -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of transformers' own forward over dequantised weights, and over those that stay in blocks."""
    source: Any = find_model(str(path))
    with torch.no_grad():
        return (
            source.build(torch.float32, "cpu", {"device_map": None})(IDS).logits,
            source.build_packed(products)(IDS).logits,
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_dequantised_model(family: str, tmp_path: Path) -> None:
    plain, packed = plain_and_packed(quantised(tmp_path / "a.gguf", "Q4_1", family))
    torch.testing.assert_close(packed, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_0"])
@pytest.mark.parametrize("tied", [False, True])
def test_kinds(kind: str, tied: bool, tmp_path: Path) -> None:
    path = quantised(tmp_path / "a.gguf", kind, tie_word_embeddings=tied)
    plain, packed = plain_and_packed(path)
    torch.testing.assert_close(packed, plain, rtol=1e-3, atol=1e-4)
    model = load_model(str(path), weights="stored").model
    layers = packed_layers(model)
    assert {layer.packed.kind for layer in layers} == {kind}
    assert len({layer.packed.data.data_ptr() for layer in layers}) == len(layers) - tied
    assert isinstance(model.get_input_embeddings(), PackedEmbedding)
    assert not [name for name, value in model.named_parameters() if value.dim() == 2]


@pytest.mark.skipif(not features.multiplies_bfloat16(), reason="no products of bfloat16 here")
@pytest.mark.parametrize("family", FAMILIES)
def test_products_of_bfloat16_are_near(family: str, tmp_path: Path) -> None:
    plain, packed = plain_and_packed(quantised(tmp_path / "a.gguf", "Q8_0", family), products="bfloat16")
    assert float((packed - plain).norm() / plain.norm()) < 2e-2


def test_a_kind_that_is_not_packed_is_rounded_to_bfloat16(tmp_path: Path) -> None:
    plain, packed = plain_and_packed(quantised(tmp_path / "a.gguf", "Q5_1"))
    assert float((packed - plain).norm() / plain.norm()) < 1e-2


def test_folders_are_packed_too(tmp_path: Path) -> None:
    for dtype, kind in ((torch.bfloat16, "BF16"), (torch.float16, "F16")):
        make_model(dtype=dtype).save_pretrained(tmp_path / kind)
        with torch.no_grad():
            expected = find_model(str(tmp_path / kind)).build(dtype, "cpu", {"device_map": None}).float()(IDS).logits
        kept = load_model(str(tmp_path / kind), dtype="float32", weights="stored")
        assert {layer.packed.kind for layer in packed_layers(kept.model)} == {kind}
        loaded = find_model(str(tmp_path / kind)).build(dtype, "cpu", {"device_map": None})
        pack_model(loaded, kind, products="float32")
        with torch.no_grad():
            torch.testing.assert_close(loaded(IDS).logits, expected, rtol=1e-3, atol=1e-4)


def test_a_folder_is_stored_in_what_it_says_or_else_holds(tmp_path: Path) -> None:
    make_model(dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert find_model(str(tmp_path)).stored == "bfloat16"
    said = json.loads((tmp_path / "config.json").read_text())
    for dtype, expected in (("float32", "float32"), (None, "bfloat16")):
        (tmp_path / "config.json").write_text(json.dumps({**said, "dtype": dtype}))
        assert find_model(str(tmp_path)).stored == expected
    assert find_model("embedded").stored == "float32"


def test_int8_made_at_load(folder: Path) -> None:
    with torch.no_grad():
        expected = find_model(str(folder)).build(torch.float32, "cpu", {"device_map": None})(IDS).logits
        model = find_model(str(folder)).build(torch.float32, "cpu", {"device_map": None})
        pack_model(model, "INT8", products="float32")
        assert float((model(IDS).logits - expected).norm() / expected.norm()) < 4e-2
    loaded = load_model(str(folder), weights="int8")
    assert loaded.weights == "int8"
    assert loaded.fingerprint != load_model(str(folder)).fingerprint


@pytest.mark.parametrize(
    ("stored", "dtype", "weights", "multiplies", "expected"),
    [
        ("float32", "auto", "auto", True, Precision("float32", "plain")),
        ("float32", "auto", "int8", True, Precision("bfloat16", "int8")),
        ("float32", "auto", "int8", False, Precision("float32", "int8")),
        ("bfloat16", "auto", "auto", True, Precision("bfloat16", "stored")),
        ("blocks", "auto", "auto", True, Precision("bfloat16", "stored")),
        ("blocks", "auto", "auto", False, Precision("float32", "stored")),
        ("blocks", "auto", "plain", True, Precision("float32", "plain")),
        ("blocks", "float32", "auto", True, Precision("float32", "plain")),
        ("float32", "auto", "stored", True, Precision("float32", "plain")),
        ("float32", "float32", "stored", True, Precision("float32", "plain")),
        ("blocks", "float32", "stored", True, Precision("float32", "stored")),
        ("blocks", "bfloat16", "auto", False, Precision("bfloat16", "stored")),
        ("blocks", "bfloat16", "plain", True, Precision("bfloat16", "plain")),
        ("blocks", "float16", "auto", True, Precision("float16", "plain")),
    ],
)
def test_what_is_chosen_on_a_cpu(
    stored: str, dtype: str, weights: Any, multiplies: bool, expected: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision.features, "multiplies_bfloat16", lambda: multiplies)
    assert choose(Stored(stored), dtype, weights, "cpu") == expected


def test_activations_of_int8_go_with_weights_of_integers() -> None:
    for stored, weights in (("blocks", "auto"), ("bfloat16", "int8"), ("float32", "int8")):
        found = choose(Stored(stored), "auto", weights, "cpu", activations="int8")
        assert (found.activations, found.products) == ("int8", "int8")
    for stored, weights, device in (
        ("bfloat16", "auto", "cpu"),
        ("blocks", "plain", "cpu"),
        ("blocks", "auto", "cuda"),
    ):
        with pytest.raises(ModelError, match="Activations int8 are for weights of integers on a CPU"):
            choose(Stored(stored), "auto", weights, device, activations="int8")


class Stored:
    """A source of which only this is asked."""

    def __init__(self, stored: str) -> None:
        self.stored = stored


def test_elsewhere_weights_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: Any = Stored("blocks")
    assert choose(blocks, "auto", "auto", "cuda") == Precision("bfloat16", "plain")
    assert choose(blocks, "auto", "auto", "cpu", shared=True) == Precision("float32", "plain")
    for dtype, weights, device in (("auto", "stored", "cuda"), ("float16", "int8", "cpu")):
        with pytest.raises(ModelError, match=f"Weights {weights} are for one process on a CPU"):
            choose(blocks, dtype, weights, device)
    with pytest.raises(ModelError, match="Unknown dtype 'float8'"):
        choose(blocks, "float8", "auto", "cpu")
    monkeypatch.setattr(precision, "can_pack", lambda: False)
    assert choose(blocks, "auto", "auto", "cpu") == Precision("float32", "plain")


def test_layers_that_something_else_has_taken_are_left(folder: Path) -> None:
    model = find_model(str(folder)).build(torch.float32, "cpu", {"device_map": None})

    class Adapted(torch.nn.Linear):
        pass

    model.model.layers[0].self_attn.q_proj.__class__ = Adapted
    pack_model(model, "BF16", products="float32")
    assert type(model.model.layers[0].self_attn.q_proj) is Adapted
    assert isinstance(model.model.layers[0].self_attn.k_proj, PackedLinear)


@pytest.mark.slow
def test_smollm2_says_the_same_in_its_blocks() -> None:
    """Greedy tokens in float32 over the file's blocks are those over dequantised weights: 200 each of ten prompts."""
    try:
        smollm2_file()
    except ModelError as error:
        pytest.skip(error.detail)
    texts = [
        "The",
        "Once upon a time",
        "def main():",
        "Water boils at",
        "In 1969",
        "My dear",
        "SELECT",
        "2 + 2 =",
        "Why",
        "Dans",
    ]
    found = []
    for weights in ("plain", "stored"):
        options = {"dtype": "float32", "weights": weights, "device": "cpu", "kv_memory": 256 << 20}
        with AsyncEngine.from_pretrained("smollm2", **options) as engine:
            prompts = [engine.tokenizer(text).input_ids for text in texts]
            results = engine.generate(prompts, SamplingParams(max_tokens=200, ignore_eos=True))
        found.append([result.token_ids for result in results])
    assert found[0] == found[1]
    assert all(len(ids) == 200 for ids in found[0])
