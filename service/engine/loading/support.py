"""What of a configuration the engine can run, and what transformers can read."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from service.errors import ModelError

QUANTISERS = {
    "awq": ("gptqmodel",), "gptq": ("gptqmodel", "optimum"), "torchao": ("torchao",),
    "compressed-tensors": ("compressed-tensors",), "bitsandbytes": ("bitsandbytes",), "fbgemm_fp8": ("fbgemm-gpu",),
}  # fmt: skip
"""By quant_method, the packages by which transformers reads such weights; those of ``fp8`` it reads by itself."""


def refuse_by_config(name: str, config: Any) -> None:
    """Refuse a model by its configuration alone.

    Raises:
        ModelError: it is not a causal decoder, or has layers, angles or a quantisation that is not known here.
    """
    text_config = config.get_text_config()
    if config.is_encoder_decoder:
        raise ModelError(f"{name!r} is an encoder-decoder model; Folio runs decoder-only models.", param="model")
    if not getattr(text_config, "is_causal", True) or getattr(text_config, "use_bidirectional_attention", False):
        raise ModelError(f"{name!r} attends in both directions; Folio runs causal models.", param="model")
    known = {"full_attention", "sliding_attention"}
    kinds = sorted(set(getattr(text_config, "layer_types", None) or []) - known)
    if kinds:
        raise ModelError(
            f"{name!r} has layers of type {', '.join(kinds)}, which paged KV does not cover.", param="model"
        )
    rope = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None) or {}
    if "dynamic" in _rope_types(rope):
        raise ModelError(
            f"{name!r} uses dynamic RoPE scaling, whose angles depend on the longest sequence of a batch.",
            hint="Use a checkpoint with linear, yarn, llama3 or longrope scaling.",
            param="model",
        )
    _refuse_quantisation(name, quantisation_of(config))


def quantisation_of(config: Any) -> dict[str, Any] | None:
    """What a configuration says of quantised weights, None where they are plain."""
    found = getattr(config, "quantization_config", None)
    found = found if found is not None else getattr(config.get_text_config(), "quantization_config", None)
    if found is None or isinstance(found, dict):
        return found
    return found.to_dict() if hasattr(found, "to_dict") else {"quant_method": found}


def _refuse_quantisation(name: str, said: dict[str, Any] | None) -> None:
    """transformers only warns of a method that it does not know, and runs what it then finds in the files."""
    if said is None or said.get("load_in_8bit") or said.get("load_in_4bit"):
        return
    method = said.get("quant_method")
    method = getattr(method, "value", method)
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING or method == "gguf":
        what = f"by {method!r}, a quant_method that transformers does not load" if method else "without a quant_method"
        raise ModelError(
            f"The weights of the model {name!r} are quantised {what}.",
            hint="Take its unquantised checkpoint, or its GGUF file.",
            param="model",
        )
    missing = [package for package in QUANTISERS.get(str(method), ()) if find_spec(package.replace("-", "_")) is None]
    if missing:
        raise ModelError(
            f"The weights of the model {name!r} are quantised by {method!r}, which the package {missing[0]} reads, "
            "and it is not installed.",
            hint=f"`pip install {' '.join(missing)}`, or take its unquantised checkpoint or its GGUF file.",
            param="model",
        )


def check_shares(name: str, config: Any, size: int) -> None:
    """Refuse a model that cannot be dealt out to ``size`` ranks.

    Raises:
        ModelError: its heads do not divide, or transformers has no plan for it.
    """
    text = config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if heads % size or kv_heads % size:
        raise ModelError(
            f"The model {name!r} has {heads} query and {kv_heads} KV heads, which {size} ranks cannot share evenly.",
            hint="Choose a --tp that divides both.",
            param="tensor_parallel",
        )
    if not getattr(text, "base_model_tp_plan", None):
        raise ModelError(
            f"transformers has no tensor-parallel plan for the model {name!r} ({text.model_type}).",
            hint="Use --tp 1.",
            param="tensor_parallel",
        )


def _rope_types(rope: Any) -> set[str]:
    """Kinds of RoPE in a configuration, which may have one for all layers or one a layer type."""
    if not isinstance(rope, dict):
        return set()
    own = {str(rope[key]) for key in ("rope_type", "type") if rope.get(key)}
    return own.union(*(_rope_types(value) for value in rope.values()))
