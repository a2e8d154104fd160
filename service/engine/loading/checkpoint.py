"""From the name of a model to one that the engine can run."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import structlog
import torch
from transformers import GenerationConfig

from service.engine.loading.device import check_device, check_heads, check_room
from service.engine.loading.folder import first_line, refuse_own_code
from service.engine.loading.gguf_model import GGUFModel
from service.engine.loading.precision import DTYPES as DTYPES
from service.engine.loading.precision import Activations, Precision, Weights, choose, weight_bytes
from service.engine.loading.sampling_defaults import SamplingDefaults
from service.engine.loading.source import Source
from service.engine.loading.sources import find_model
from service.engine.loading.support import check_shares, quantisation_of, refuse_by_config
from service.engine.runner.fused_gpu_layers import fuse_gpu_layers
from service.engine.runner.fused_layers import fuse_layers
from service.engine.runner.fused_norms import fuse_norms
from service.engine.runner.packed_layers import pack_model, packed_layers
from service.engine.runner.ranks import Ranks
from service.engine.runner.row_invariance import make_row_invariant
from service.engine.runner.wide_logits import widen_logits
from service.errors import ModelError
from service.settings import EMBEDDED as EMBEDDED
from sparse_attn.backend import attach
from sparse_attn.errors import UnsupportedModelFeature
from sparse_attn.kernels.cpu import features
from sparse_attn.kernels.cpu.packed import products_with
from sparse_attn.kv.pool import KVShape
from sparse_attn.plan.policy import ModelShape

log = structlog.get_logger(__name__)


@dataclass
class LoadedModel:
    """A model with paged attention, and what the engine needs to know of it.

    Attributes:
        name: as the user gave it.
        tokenizer: None where the checkpoint has none; then prompts are token ids and text is empty.
        max_len: positions that the model was made for.
        eos_ids: tokens that end a sequence.
        fingerprint: names configuration and weights, so that KV of other weights is never taken for this model's;
            the hash of a GGUF file.
        ranks: the processes that have a share of the heads each; None for this one alone.
        sampling: what the checkpoint's makers sample with, for requests that do not say.
        precision: what its weights and products are of; None for a model in memory, whose tensors say it.
        num_parameters: numbers in its weights, all ranks together.
    """

    name: str
    model: Any
    tokenizer: Any
    kv_shape: KVShape
    max_len: int
    eos_ids: frozenset[int]
    fingerprint: str
    ranks: Ranks | None = None
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    precision: Precision | None = None
    num_parameters: int = 0

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
        """Of its products, by its name in ``DTYPES``."""
        return self.precision.dtype if self.precision else str(self.model.dtype).removeprefix("torch.")

    @property
    def weights(self) -> Weights:
        """What the weights are kept as: plain, stored or int8."""
        return self.precision.weights if self.precision else "plain"

    @property
    def arithmetic(self) -> str:
        """Weights, products and instructions in words, for the statistics."""
        packed = packed_layers(self.model)
        if not packed:
            return self.dtype
        kinds = ", ".join(sorted({layer.packed.kind for layer in packed}))
        products = ", ".join(sorted({layer.packed.products for layer in packed}))
        return f"weights {kinds}, products {products} ({features.family()})"

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_output_embeddings().out_features)


def load_model(
    name: str,
    dtype: str = "float32",
    device: str = "cpu",
    max_model_len: int | None = None,
    ranks: Ranks | None = None,
    weights: Weights = "auto",
    activations: Activations = "auto",
    kv_memory: int = 0,
) -> LoadedModel:
    """Load a decoder-only model, weights straight to the device; ``max_model_len`` lowers its own length.

    ``dtype``, ``weights`` and ``activations`` are as in `service.engine.loading.precision.choose`. With ``ranks``, all
    of which must be in this call, each loads its share by transformers' tensor-parallel plan. There must be room
    for ``kv_memory`` bytes beside the weights.

    Raises:
        ModelError: it cannot be found or read, is not a decoder, lacks tensors or has others, or needs what the engine
            does not have; the message names the model and the cause.
    """
    source = find_model(name)
    refuse_by_config(name, source.config)
    check_device(device)
    precision = choose(source, dtype, weights, device, ranks is not None, activations)
    if ranks is not None:
        check_shares(name, source.config, ranks.size)
    else:
        quantised = quantisation_of(source.config) is not None  # by a library of its own, which knows their size
        check_room(name, None if quantised else weight_bytes(source, precision), kv_memory, device)
    if device != "cpu":
        check_heads(name, ModelShape.of_config(source.config.get_text_config()).head_dim, DTYPES[precision.dtype])
    placed = {"device_map": _device_map(device)} if ranks is None else {"distributed_config": _shared(ranks)}
    aside = ThreadPoolExecutor(1)  # a file is hashed while the tokenizer, in Python, holds one core
    fingerprint = aside.submit(lambda: source.fingerprint)
    aside.shutdown(wait=False)
    tokenizer, generation = source.tokenizer(), source.generation()
    sampling = SamplingDefaults.of(name, generation)
    try:
        model: Any = _build(source, precision, device, placed)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"The model {name!r} does not fit into the memory of {device}.",
            hint="Take a smaller model or --dtype bfloat16, or share it over several GPUs with --tp.",
            param="model",
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        refuse_own_code(name, error)
        raise ModelError(f"The model {name!r} cannot be loaded: {first_line(error)}", param="model") from error
    loaded = prepare(name, model.eval(), tokenizer, max_model_len, fingerprint.result())
    loaded.ranks, loaded.sampling, loaded.precision = ranks, sampling, precision
    loaded.num_parameters = source.num_parameters or loaded.num_parameters
    return loaded


def _build(source: Source, precision: Precision, device: str, placed: dict[str, Any]) -> Any:
    if precision.weights == "plain":
        return source.build(DTYPES[precision.dtype], device, placed)
    if precision.weights == "stored" and isinstance(source, GGUFModel):
        return source.build_packed(precision.products)
    kept = "float32" if source.stored == "blocks" else source.stored
    if precision.weights == "int8":
        model = source.build(DTYPES[kept], device, placed)
        pack_model(model, "INT8", precision.products)
        return model
    half = kept == "float16" and products_with("F16", precision.products) == "float32"
    model = source.build(torch.float16 if half else torch.bfloat16, device, placed)
    pack_model(model, "F16" if half else "BF16", precision.products)
    return model


def read_config(name: str) -> Any:
    """The transformers configuration of a model, without its weights.

    Raises:
        ModelError: there is none.
    """
    return find_model(name).config


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model, or None where it has none (said in the log).

    Raises:
        ModelError: there is one and it cannot be read.
    """
    return find_model(name).tokenizer()


def _shared(ranks: Ranks) -> Any:
    from transformers.distributed import DistributedConfig

    return DistributedConfig(tp_size=ranks.size)


def prepare(
    name: str, model: Any, tokenizer: Any = None, max_model_len: int | None = None, fingerprint: str | None = None
) -> LoadedModel:
    """Attach paged attention to a model in memory; ``fingerprint`` where its weights have a name already.

    Raises:
        ModelError: as ``load_model``.
    """
    refuse_by_config(name, model.config)
    try:
        shape = attach(model)
    except UnsupportedModelFeature as error:
        raise ModelError(f"The model {name!r} is not supported: {error}.", param="model") from error
    on_kernels = make_row_invariant(model)
    fuse_norms(model)
    if next(model.parameters()).is_cuda:
        fuse_gpu_layers(model)
        widen_logits(model)
    elif not fuse_layers(model) and on_kernels:
        log.info("a decode step runs layer by layer, which is slower: the CPU kernels know no such model", model=name)
    text_config = model.config.get_text_config()
    max_len = int(getattr(text_config, "max_position_embeddings", 0) or 1 << 20)
    max_len = min(max_len, max_model_len or max_len)
    _pin_rope(name, model, max_len)
    fingerprint = fingerprint or _fingerprint(model)
    count = sum(weight.numel() for weight in model.parameters())
    return LoadedModel(
        name, model, tokenizer, shape, max_len, _eos_ids(model, tokenizer), fingerprint, num_parameters=count
    )


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
    for layer in packed_layers(model):
        data = layer.packed.data
        digest.update(layer.packed.kind.encode() + data[:: max(1, len(data) // 64)].numpy().tobytes())
    return digest.hexdigest()


def _local(weight: Any) -> Any:
    """This rank's share of a weight."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


def _device_map(device: str) -> Any:
    return None if device == "cpu" else {"": device}
