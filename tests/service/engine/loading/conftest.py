"""Checkpoints in folders and in GGUF files, small and random, to be damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ..conftest import make_model

LETTERS = [chr(97 + i) for i in range(26)]
VOCABULARY = ["<unk>", "<s>", "</s>", *LETTERS, "▁", *(f"<0x{byte:02X}>" for byte in range(67))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama of three layers as transformers saves it."""
    path = tmp_path / "llama"
    make_model(dtype=torch.float32).save_pretrained(path)
    return path


def write_gguf(path: Path, model: Any, **changes: Any) -> Path:
    """Write a model as llama.cpp's converter does; ``changes`` are of its metadata (None removes a key).

    ``skip`` names tensors to leave out, ``add`` has more of them, ``kind`` is what matrices are stored in.
    """
    import gguf

    config = model.config
    architecture = {"gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    skip, add = changes.pop("skip", ()), changes.pop("add", {})
    quant = gguf.GGMLQuantizationType[changes.pop("kind", "F32")]
    writer = gguf.GGUFWriter(str(path), changes.pop("architecture", architecture))
    for key, value in {**_metadata(architecture, config), **changes}.items():
        _put(writer, key, value)
    names = gguf.get_tensor_name_map(_number_of(architecture), config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        key = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if key not in skip:
            plain = _as_stored(architecture, key, weight.float().numpy(), config)
            if plain.ndim == 2 and quant != gguf.GGMLQuantizationType.F32:
                writer.add_tensor(key, gguf.quants.quantize(plain, quant), raw_dtype=quant)
            else:
                writer.add_tensor(key, plain)
    for key, weight in add.items():
        writer.add_tensor(key, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(architecture: str, config: Any) -> dict[str, Any]:
    own = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": getattr(config, "head_dim", None),
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": getattr(config, "head_dim", None),
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "rope.freq_base": _theta(config.rope_parameters),
    }
    return {
        **{f"{architecture}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": VOCABULARY,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(VOCABULARY))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * 27, *[6] * 67],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }


def _theta(rope: dict[str, Any]) -> float:
    return float(rope.get("full_attention", rope)["rope_theta"])


def _number_of(architecture: str) -> Any:
    import gguf

    return next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)


def _put(writer: Any, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _as_stored(architecture: str, key: str, weight: np.ndarray, config: Any) -> np.ndarray:
    """llama.cpp turns neighbours where transformers turns halves; Gemma's norms are stored with one added."""
    if architecture == "llama" and (".attn_q." in key or ".attn_k." in key):
        heads = config.num_attention_heads if ".attn_q." in key else config.num_key_value_heads
        halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
    if architecture.startswith("gemma") and "norm" in key:
        return weight + 1
    return weight


@pytest.fixture
def gguf_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a random Llama as GGUF: ``gguf_file("name.gguf", **changes of its metadata)``."""

    def write(name: str = "llama.gguf", **changes: Any) -> Path:
        return write_gguf(tmp_path / name, make_model(dtype=torch.float32), **changes)

    return write
