"""From a folder, a hub id or the word `embedded` to a model that the engine can run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from service.engine.runner.fused_layers import fuse_layers
from service.engine.runner.fused_norms import fuse_norms
from service.engine.runner.ranks import Ranks
from service.engine.runner.row_invariance import make_row_invariant
from service.errors import ModelError
from sparse_attn.backend import attach
from sparse_attn.errors import UnsupportedModelFeature
from sparse_attn.kv.pool import KVShape

log = structlog.get_logger(__name__)

EMBEDDED = "embedded"
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass
class LoadedModel:
    """A model with paged attention, and what the engine needs to know of it.

    Attributes:
        name: as the user gave it.
        tokenizer: None where the checkpoint has none; then prompts are token ids and text is empty.
        max_len: positions that the model was made for.
        eos_ids: tokens that end a sequence.
        fingerprint: names configuration and weights, so that KV of other weights is never taken for this model's.
        ranks: the processes that have a share of the heads each; None for this one alone.
    """

    name: str
    model: Any
    tokenizer: Any
    kv_shape: KVShape
    max_len: int
    eos_ids: frozenset[int]
    fingerprint: str
    ranks: Ranks | None = None

    @cached_property
    def tokenizer_fingerprint(self) -> str | None:
        """Names the vocabulary, so that token ids kept on disk are never read with another; None without tokenizer."""
        if self.tokenizer is None:
            return None
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.blake2b(vocabulary.encode(), digest_size=8).hexdigest()

    @property
    def device(self) -> str:
        """Where the weights are: cpu or cuda:N."""
        return str(self.model.device)

    @property
    def dtype(self) -> str:
        """Of the weights, by its name in ``DTYPES``."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])


def load_model(
    name: str,
    dtype: str = "float32",
    device: str = "cpu",
    max_model_len: int | None = None,
    ranks: Ranks | None = None,
) -> LoadedModel:
    """Load a decoder-only model, weights straight to the device; ``max_model_len`` lowers its own length.

    With ``ranks``, all of which must be in this call, each loads its share by transformers' tensor-parallel plan.

    Raises:
        ModelError: it cannot be found or read, is not a decoder, or needs what the engine does not have;
            the message names the model and the cause.
    """
    if dtype not in DTYPES:
        raise ModelError(f"Unknown dtype {dtype!r}.", hint=f"Choose one of {', '.join(DTYPES)}.", param="dtype")
    path, config = _path(name), read_config(name)
    _refuse_by_config(name, config)
    check_device(device)
    if ranks is not None:
        check_shares(name, config, ranks.size)
    placed = {"device_map": _device_map(device)} if ranks is None else {"distributed_config": _shared(ranks)}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], **placed)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"The model {name!r} does not fit into the memory of {device}.",
            hint="Take a smaller model or --dtype bfloat16, or share it over several GPUs with --tp.",
            param="model",
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"The model {name!r} cannot be loaded: {_first_line(error)}", param="model") from error
    loaded = prepare(name, model.eval(), load_tokenizer(path), max_model_len)
    loaded.ranks = ranks
    return loaded


def read_config(name: str) -> Any:
    """The transformers configuration of a model, without its weights.

    Raises:
        ModelError: there is none.
    """
    path = _path(name)
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        where = "in this folder" if Path(path).is_dir() else "as a folder or on the hub"
        raise ModelError(
            f"No model {name!r} {where}: {_first_line(error)}",
            hint="Give a folder with config.json and safetensors, a hub id, or 'embedded'.",
            param="model",
        ) from error


def _path(name: str) -> str:
    if name != EMBEDDED:
        return name
    from service.reader import MODEL_DIR, verify_model

    verify_model()
    return str(MODEL_DIR)


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use here.

    Raises:
        ModelError: says whether the GPU, the driver or the build of torch is what is missing.
    """
    if not device.startswith("cuda"):
        return
    if torch.version.cuda is None:
        raise ModelError(
            f"{device} was asked for, and torch {torch.__version__} is a build without CUDA.",
            hint="Install torch's CUDA wheel, or use --device cpu.",
            param="device",
        )
    count = torch.cuda.device_count()
    if count == 0:
        raise ModelError(
            f"{device} was asked for, and torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU.",
            hint="Look at `nvidia-smi`: the driver may be missing or too old for this wheel; or use --device cpu.",
            param="device",
        )
    number = int(device.partition(":")[2] or 0)
    if number >= count:
        raise ModelError(f"{device} was asked for; this machine has {count} GPU(s), from cuda:0 on.", param="device")
    capability, built = torch.cuda.get_device_capability(number), torch.cuda.get_arch_list()
    if built and not any(_runs_on(arch, capability) for arch in built):
        raise ModelError(
            f"{torch.cuda.get_device_name(number)} is of compute capability {capability[0]}.{capability[1]}, for which "
            f"torch {torch.__version__} is not built ({', '.join(built)}).",
            hint="Install a wheel of torch for this GPU, or use --device cpu.",
            param="device",
        )


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``arch`` (sm_90a, compute_80 …) runs on a GPU: binaries within a major version, PTX upwards."""
    kind, _, number = arch.partition("_")
    digits = "".join(c for c in number if c.isdigit())
    version = int(digits[:-1] or 0), int(digits[-1:] or 0)
    return version <= capability and (kind == "compute" or version[0] == capability[0])


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


def _shared(ranks: Ranks) -> Any:
    from transformers.distributed import DistributedConfig

    return DistributedConfig(tp_size=ranks.size)


def prepare(name: str, model: Any, tokenizer: Any = None, max_model_len: int | None = None) -> LoadedModel:
    """Attach paged attention to a model in memory.

    Raises:
        ModelError: as ``load_model``.
    """
    _refuse_by_config(name, model.config)
    try:
        shape = attach(model)
    except UnsupportedModelFeature as error:
        raise ModelError(f"The model {name!r} is not supported: {error}.", param="model") from error
    on_kernels = make_row_invariant(model)
    fuse_norms(model)
    if not fuse_layers(model) and on_kernels:
        log.info("a decode step runs layer by layer, which is slower: the CPU kernels know no such model", model=name)
    text_config = model.config.get_text_config()
    max_len = int(getattr(text_config, "max_position_embeddings", 0) or 1 << 20)
    max_len = min(max_len, max_model_len or max_len)
    _pin_rope(name, model, max_len)
    return LoadedModel(name, model, tokenizer, shape, max_len, _eos_ids(model, tokenizer), _fingerprint(model))


def load_tokenizer(path: str) -> Any:
    """The checkpoint's tokenizer, or None where there is none (said in the log)."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("model has no tokenizer: token ids only", model=path, error=_first_line(error))
        return None


def _refuse_by_config(name: str, config: Any) -> None:
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


def _rope_types(rope: Any) -> set[str]:
    """Kinds of RoPE in a configuration, which may have one for all layers or one a layer type."""
    if not isinstance(rope, dict):
        return set()
    own = {str(rope[key]) for key in ("rope_type", "type") if rope.get(key)}
    return own.union(*(_rope_types(value) for value in rope.values()))


def _pin_rope(name: str, model: Any, max_len: int) -> None:
    """longrope switches its angles by the longest sequence of a batch: hold it to those of the model's full length.

    A sequence must not change its numbers because a longer one joins the batch, so one regime serves all.
    """
    for module in model.modules():
        original = getattr(module, "original_inv_freq", None)
        if original is None or getattr(module, "rope_type", "") != "longrope":
            continue
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        device = module.inv_freq.device
        module.inv_freq, module.attention_scaling = ROPE_INIT_FUNCTIONS["longrope"](
            module.config, device, seq_len=max_len
        )
        module.original_inv_freq = module.inv_freq
        module.rope_type = "default"  # else each forward asks the device for its largest position
        log.info("longrope pinned to its long regime", model=name, max_len=max_len)


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    generation: GenerationConfig | None = getattr(model, "generation_config", None)
    found: set[int] = set()
    for holder in (generation, model.config, tokenizer):
        value = getattr(holder, "eos_token_id", None)
        if value is not None:
            found |= set(value) if isinstance(value, list | tuple) else {int(value)}
    return frozenset(found)


def _fingerprint(model: Any) -> str:
    """A hash of the configuration and of a sample of every weight."""
    digest = hashlib.blake2b(digest_size=8)
    settings = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        flat = _local(weight.detach()).flatten()
        sample = flat[:: max(1, len(flat) // 64)].double().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _local(weight: Any) -> Any:
    """This rank's share of a weight."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


def _device_map(device: str) -> Any:
    return None if device == "cpu" else {"": device}


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
