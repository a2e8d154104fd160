"""A checkpoint that is not whole, not its configuration's or not readable is refused in one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from service.engine.loading.checkpoint import load_model, read_config
from service.engine.loading.sampling_defaults import SamplingDefaults
from service.errors import ModelError

from ..conftest import make_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000\n"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(folder: Path, remove: str = "\0", **more: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if remove not in key}
    save_file({**kept, **more}, folder / "model.safetensors", {"format": "pt"})


def refusal(name: object, capsys: pytest.CaptureFixture[str] | None = None) -> str:
    with pytest.raises(ModelError) as refused:
        load_model(str(name))
    if capsys is not None:
        assert "LOAD REPORT" not in capsys.readouterr().err
    assert "\n" not in refused.value.detail
    return refused.value.detail


def test_whole_weights_load(folder: Path) -> None:
    assert load_model(str(folder)).model.config.num_hidden_layers == 3


def test_layers_that_are_not_in_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder / "config.json", num_hidden_layers=5)
    said = refusal(folder, capsys)
    assert "18 tensors are missing (model.layers.3.input_layernorm.weight" in said
    assert "and 15 more" in said


def test_a_layer_too_many(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=2)
    assert "9 tensors are not of this configuration (model.layers.2." in refusal(folder)


def test_one_tensor_missing_and_one_unknown(folder: Path) -> None:
    change_weights(folder, "layers.1.mlp.up_proj", **{"model.extra.weight": torch.zeros(3)})
    said = refusal(folder)
    assert "1 tensor is missing (model.layers.1.mlp.up_proj.weight)" in said
    assert "1 tensor is not of this configuration (model.extra.weight)" in said


def test_another_shape(folder: Path) -> None:
    change_weights(folder, **{"model.norm.weight": torch.zeros(7)})
    assert "1 tensor is of another shape (model.norm.weight is 7, not 48)" in refusal(folder)


def test_tied_weights_and_old_buffers_are_not_missing(tmp_path: Path) -> None:
    make_model("gemma3", dtype=torch.float32).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    change_weights(tmp_path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    load_model(str(tmp_path))


@pytest.mark.parametrize("said", [{"quant_method": "own4bit", "bits": 4}, {"bits": 4}, {"quant_method": "gguf"}])
def test_a_quantisation_that_is_not_known(folder: Path, said: dict[str, Any]) -> None:
    change(folder / "config.json", quantization_config=said)
    assert "quant_method" in refusal(folder)


@pytest.mark.parametrize("method", ["awq", "gptq", "torchao", "compressed-tensors", "fbgemm_fp8"])
def test_a_quantisation_whose_library_is_not_there(folder: Path, method: str) -> None:
    said = {"quant_method": method, "bits": 4, "quant_type": "int8_weight_only", "group_size": 128}
    change(folder / "config.json", quantization_config=said)
    assert re.search(r"reads, and it is not installed. `pip install [\w-]+", refusal(folder))


@pytest.mark.parametrize(
    ("head_dim", "dtype", "remedy"),
    [
        (80, torch.bfloat16, None), (256, torch.bfloat16, None), (96, torch.float32, None),
        (256, torch.float32, "Use --dtype bfloat16."), (512, torch.bfloat16, "Use --device cpu."),
    ],
)  # fmt: skip
def test_heads_that_no_kernel_of_a_gpu_is_for(head_dim: int, dtype: torch.dtype, remedy: str | None) -> None:
    from service.engine.loading.device import check_heads

    if remedy is None:
        check_heads("m", head_dim, dtype)
        return
    with pytest.raises(ModelError, match=f"heads of {head_dim} numbers") as refused:
        check_heads("m", head_dim, dtype)
    assert refused.value.detail.endswith(remedy)


def test_pages_that_a_gpu_has_no_room_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the weights are read; without a number they take a share of what is left."""
    from service.engine.loading import checkpoint, device

    monkeypatch.setattr(device, "available_memory", lambda _: 50_000_000)
    monkeypatch.setattr(checkpoint, "check_device", lambda _: None)
    with pytest.raises(ModelError, match=r"1\.0 GB for KV beside .* of weights; 50 MB are free on cuda:0") as refused:
        checkpoint.load_model(str(folder), "bfloat16", "cuda:0", kv_memory=1_000_000_000)
    assert refused.value.param == "kv_memory"
    device.check_room("m", 40_000_000, 0, "cuda:0")


def test_git_lfs_pointers(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(POINTER)
    assert "tokenizer.json of the model" in (said := refusal(folder))
    assert "Git LFS pointer" in said
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").write_bytes(POINTER)
    assert "model.safetensors of the model" in (said := refusal(folder))
    assert "git lfs pull" in said


@pytest.mark.parametrize("left", [0, 5, 200, -8])
def test_safetensors_cut_off(folder: Path, left: int) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:left])
    assert "model.safetensors of the model" in (said := refusal(folder))
    assert "is cut off" in said


def test_a_part_that_the_index_names_is_not_there(folder: Path) -> None:
    make_model(dtype=torch.float32).save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink()
    part = min(folder.glob("model-*.safetensors"))
    part.unlink()
    assert f"lacks {part.name}" in refusal(folder)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json"])
def test_a_byte_order_mark(folder: Path, file: str) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / file).write_bytes(b"\xef\xbb\xbf" + (folder / file).read_bytes())
    assert f"{file} of the model" in (said := refusal(folder))
    assert "byte order mark" in said


def test_json_that_is_none(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama",')
    assert "config.json of the model" in refusal(folder)
    (folder / "config.json").write_text("[]")
    assert "holds no JSON object" in refusal(folder)


def test_too_little_memory_is_said_before_weights_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.engine.loading import device
    from service.engine.loading.folder import AutoModelForCausalLM

    monkeypatch.setattr(device, "available_memory", lambda _: 1000)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    assert "in float32; 0 MB are free" in refusal(folder)


def test_sampling_defaults_of_the_checkpoint(folder: Path) -> None:
    assert load_model(str(folder)).sampling == SamplingDefaults()
    said = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}
    change(folder / "generation_config.json", **said, eos_token_id=[2, 5])
    loaded = load_model(str(folder))
    assert loaded.sampling == SamplingDefaults(0.6, 0.9, 20, repetition_penalty=1.1)
    assert loaded.eos_ids == {2, 5}
    change(folder / "generation_config.json", do_sample=False)
    assert load_model(str(folder)).sampling.temperature == 0.0


@pytest.mark.parametrize(("key", "value"), [("top_p", 7.0), ("top_k", -1), ("repetition_penalty", 0), ("top_p", "hot")])
def test_sampling_defaults_that_are_none(folder: Path, key: str, value: Any) -> None:
    change(folder / "generation_config.json", **{"do_sample": True, key: value})
    assert "generation_config.json" in (said := refusal(folder))
    assert key in said


class TestAdapters:
    @pytest.fixture
    def adapter(self, folder: Path, tmp_path: Path) -> Path:
        path = tmp_path / "adapter"
        path.mkdir()
        rank = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
        (path / "adapter_config.json").write_text(json.dumps({**rank, "base_model_name_or_path": str(folder)}))
        prefix = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        torch.manual_seed(1)
        sides = {"A": (2, 48), "B": (64, 2)}
        weights = {prefix.format(n, side): torch.randn(shape) for n in range(3) for side, shape in sides.items()}
        save_file(weights, path / "adapter_model.safetensors")
        return path

    def test_it_is_merged(self, adapter: Path, folder: Path) -> None:
        pytest.importorskip("peft", reason="peft merges adapters, and is not installed")
        plain, merged = load_model(str(folder)), load_model(str(adapter))
        low = load_file(adapter / "adapter_model.safetensors")
        for number in range(3):
            prefix = f"base_model.model.model.layers.{number}.self_attn.q_proj.lora_"
            added = 2 * low[f"{prefix}B.weight"] @ low[f"{prefix}A.weight"]
            before = plain.model.model.layers[number].self_attn.q_proj.weight
            torch.testing.assert_close(merged.model.model.layers[number].self_attn.q_proj.weight, before + added)
        assert merged.fingerprint != plain.fingerprint

    def test_without_peft(self, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from service.engine.loading import adapter as module

        monkeypatch.setattr(module, "find_spec", lambda _: None)
        assert "pip install peft" in refusal(adapter)

    def test_matrices_that_are_missing(self, adapter: Path) -> None:
        pytest.importorskip("peft", reason="peft merges adapters, and is not installed")
        weights = load_file(adapter / "adapter_model.safetensors")
        save_file({k: v for k, v in weights.items() if "layers.1." not in k}, adapter / "adapter_model.safetensors")
        assert "2 tensors are missing" in refusal(adapter)

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"base_model_name_or_path": None}, "does not name its base"),
            ({"peft_type": "PROMPT_TUNING"}, "LoRA alone"),
        ],
    )
    def test_others(self, adapter: Path, values: dict[str, Any], said: str) -> None:
        change(adapter / "adapter_config.json", **values)
        assert said in refusal(adapter)

    def test_a_pointer(self, adapter: Path) -> None:
        (adapter / "adapter_model.safetensors").write_bytes(POINTER)
        assert "Git LFS pointer" in refusal(adapter)


def test_no_such_model() -> None:
    with pytest.raises(ModelError, match=r"No model '/no/such' as a folder or on the hub") as refused:
        read_config("/no/such")
    assert "GGUF" in refused.value.detail
