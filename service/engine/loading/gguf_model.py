"""A GGUF file as a transformers model: configuration, tokenizer and weights, dequantised or kept in their blocks.

transformers reads such files too, one at a time and into several copies; its tables of keys and its rules of tensors
(llama.cpp's RoPE halves lie interleaved, Gemma's norms are stored with one added) are what is used here.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import structlog
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig, PreTrainedTokenizerFast
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from service.engine.loading.device import check_memory, gigabytes
from service.engine.loading.folder import first_line
from service.engine.loading.gguf_file import GGUFFile, GGUFTensor
from service.engine.loading.weights import build_whole, refuse_unlike
from service.engine.runner.packed_layers import PackedEmbedding, can_be_packed, put_packed
from service.errors import ModelError
from sparse_attn.kernels.cpu.packed import KINDS, PackedWeight, Products, pack, pack_tensor

log = structlog.get_logger(__name__)

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
"""GGUF's name of each that is read here, and transformers' model type; Mistral's files are called llama."""

_NEEDED = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)  # fmt: skip
_TOKENIZERS = ("gpt2", "llama")
_SPLITS = ("default", "gpt-2", "gpt2", "smollm")
"""Pre-tokenizers that GPT-2's split of words serves; SmolLM's digits stand alone in its merges already."""
_SPECIAL = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "unknown_token_id": "unk_token_id",
    "padding_token_id": "pad_token_id",
}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_CONTROL = 3
_ENDS_BY_NAME = {"<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"}
"""Tokens of control that end an answer where a file names only one of its model's: Qwen's names the end of a turn."""
_ROPE_FREQUENCIES = "rope_freqs.weight"
_LARGEST = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, whose queries are scaled by the hidden size a head."""


@dataclass(frozen=True)
class GGUFModel:
    """A model in a GGUF file (`service.engine.loading.source.Source`)."""

    name: str
    file: GGUFFile

    @property
    def fingerprint(self) -> str:
        return self.file.sha256

    @property
    def num_parameters(self) -> int:
        return self.file.num_parameters

    @cached_property
    def config(self) -> Any:
        """The transformers configuration that the file's metadata describe.

        Raises:
            ModelError: its architecture is not read here, or it lacks or has what that needs; names it.
        """
        file, architecture = self.file, self.file.architecture
        if architecture not in ARCHITECTURES:
            raise ModelError(
                f"{file.paths[0].name} is of the architecture {architecture!r}, which Folio does not read from GGUF.",
                hint=f"It reads {', '.join(ARCHITECTURES)}.",
                param="model",
            )
        lacking = [key for key in _NEEDED if not isinstance(file.own(key), int | float)]
        if lacking or "token_embd.weight" not in file.tensors:
            what = f"a number {architecture}.{lacking[0]}" if lacking else "the tensor token_embd.weight"
            raise ModelError(f"{file.paths[0].name} has not {what}.", hint="Convert the model anew.", param="model")
        if file.own("block_count") > len(file.tensors):
            raise ModelError(
                f"{file.paths[0].name} has {len(file.tensors)} tensors for {file.own('block_count')} layers.",
                param="model",
            )
        try:
            return AutoConfig.for_model(ARCHITECTURES[architecture], **self._values())
        except ModelError:
            raise
        except Exception as error:  # values may be of any type, and transformers validates by several kinds of error
            raise ModelError(f"{file.paths[0].name} describes no model: {first_line(error)}", param="model") from error

    def _values(self) -> dict[str, Any]:
        """Of the configuration, by transformers' names."""
        file = self.file
        table: Any = GGUF_CONFIG_MAPPING[file.architecture]
        values = {renamed: file.own(key) for key, renamed in table.items() if renamed}
        values |= {"rope_theta": file.own("rope.freq_base") or 10_000.0} | self._shape_of_attention() | self._rope()
        values["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
        values["tie_word_embeddings"] = "output.weight" not in file.tensors
        said = {key: value for key, value in values.items() if value is not None}
        # None of these too, or the ids of some other checkpoint, which are transformers' defaults, would be taken.
        return said | {renamed: file.metadata.get(f"tokenizer.ggml.{key}") for key, renamed in _SPECIAL.items()}

    def _shape_of_attention(self) -> dict[str, Any]:
        """What transformers' table leaves out: heads of their own length, windows, soft caps, scales of queries."""
        file = self.file
        heads, hidden = file.own("attention.head_count"), file.own("embedding_length")
        found: dict[str, Any] = {"num_key_value_heads": file.own("attention.head_count_kv") or heads}
        head_dim = file.own("attention.key_length") or hidden // max(1, heads)
        if file.architecture not in ("qwen2", "phi3"):
            found["head_dim"] = head_dim
        if file.architecture == "phi3":
            found["sliding_window"] = file.own("attention.sliding_window") or None
            found["partial_rotary_factor"] = (file.own("rope.dimension_count") or head_dim) / head_dim
        if file.architecture in _LARGEST:
            largest = file.own("block_count") == _LARGEST[file.architecture]
            found["query_pre_attn_scalar"] = hidden // heads if largest else head_dim
        if file.architecture == "gemma2":
            found["attn_logit_softcapping"] = file.own("attn_logit_softcapping")
            found["final_logit_softcapping"] = file.own("final_logit_softcapping")
        return found

    def _rope(self) -> dict[str, Any]:
        """Scaling of the angles, of which transformers' own reader takes no notice."""
        kind, factor = self.file.own("rope.scaling.type") or "none", self.file.own("rope.scaling.factor")
        if kind == "none" or factor in (None, 0, 1):
            return {}
        if kind == "linear":
            return {"rope_scaling": {"rope_type": "linear", "factor": float(factor)}}
        if kind == "yarn":
            original = self.file.own("rope.scaling.original_context_length")
            scaling = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
            return {"rope_scaling": scaling}
        raise ModelError(
            f"{self.file.paths[0].name} scales RoPE by {kind!r}, which Folio does not read from GGUF.",
            hint="It reads linear and yarn scaling, and Llama 3's.",
            param="model",
        )

    def generation(self) -> GenerationConfig:
        """What the file says of sampling and of the tokens that end an answer."""
        said = self.file.metadata
        named = [said.get(f"tokenizer.ggml.{key}") for key in _ENDS]
        ends = sorted({token for token in named if isinstance(token, int)} | self._ends_by_name())
        values = {
            "eos_token_id": ends or None,
            "temperature": said.get("general.sampling.temp"),
            "top_p": said.get("general.sampling.top_p"),
            "top_k": said.get("general.sampling.top_k"),
            "min_p": said.get("general.sampling.min_p"),
            "repetition_penalty": said.get("general.sampling.penalty_repeat"),
        }
        return GenerationConfig(**{key: value for key, value in values.items() if value is not None})

    def _ends_by_name(self) -> set[int]:
        tokens = self.file.metadata.get("tokenizer.ggml.tokens") or ()
        kinds = self.file.metadata.get("tokenizer.ggml.token_type") or ()
        pairs = enumerate(zip(tokens, kinds, strict=False))
        return {number for number, (token, kind) in pairs if kind == _CONTROL and token in _ENDS_BY_NAME}

    def tokenizer(self) -> Any:
        """The file's own, with its chat template; None where it has no vocabulary (said in the log).

        Raises:
            ModelError: it is of a kind that transformers does not build from GGUF, or its parts do not fit.
        """
        said, path = self.file.metadata, self.file.paths[0]
        kind, tokens = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.tokens")
        if kind is None or not isinstance(tokens, list):
            log.warning("model has no tokenizer: token ids only", model=self.name)
            return None
        if kind not in _TOKENIZERS:
            raise ModelError(
                f"{path.name} has a tokenizer of the kind {kind!r}, which Folio does not read from GGUF.",
                hint="It reads gpt2 (byte-level BPE) and llama (SentencePiece).",
                param="model",
            )
        if len(tokens) > self.config.vocab_size:
            raise ModelError(
                f"{path.name} has {len(tokens)} tokens, and an embedding of {self.config.vocab_size}.", param="model"
            )
        try:
            found = _tokenizer(self.file, tokens)
        except Exception as error:  # of the tokenizers' library too, which has no base of its own
            raise ModelError(
                f"The tokenizer in {path.name} cannot be built: {first_line(error)}", param="model"
            ) from error
        self._remark(found)
        return found

    def _remark(self, tokenizer: Any) -> None:
        """Say in the log what the file leaves open."""
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as known

        split = str(self.file.metadata.get("tokenizer.ggml.pre", "default"))
        if self.file.metadata["tokenizer.ggml.model"] == "gpt2" and split not in known and split not in _SPLITS:
            log.warning("words are split as GPT-2's: the file's pre-tokenizer is not known", pre=split, model=self.name)
        if not tokenizer.chat_template:
            log.warning("the file has no chat template: prompts are running text", model=self.name)

    @property
    def num_bytes(self) -> int:
        return self.file.num_bytes

    @property
    def stored(self) -> str:
        """float32 where no matrix is in anything else."""
        return "float32" if all(tensor.kind == "F32" for tensor in self._matrices()) else "blocks"

    def build(self, dtype: torch.dtype, device: str, placed: dict[str, Any]) -> Any:
        """The model with its weights dequantised to ``dtype``; one tensor at a time is held twice.

        Raises:
            ModelError: its tensors are not those of its configuration, or memory is short; nothing was allocated.
        """
        for tensor in {tensor.kind: tensor for tensor in self.file.tensors.values()}.values():
            _dequantised(tensor, rows=1)
        check_memory(self.name, self.num_parameters * dtype.itemsize, str(dtype).removeprefix("torch."), device)
        log.info(
            "weights are dequantised: the file's blocks take less memory than what runs",
            model=self.name,
            file=gigabytes(self.file.num_bytes),
            weights=gigabytes(self.num_parameters * dtype.itemsize),
            dtype=str(dtype).removeprefix("torch."),
        )
        names, processor = self._names_and_processor()
        return self._built(self._weights_of(names, processor, dtype), dtype, placed)

    def build_packed(self, products: Products) -> Any:
        """The model with the weights of its layers in the file's blocks, packed; all else in float32, on the CPU.

        Matrices of a kind that is not packed are rounded to bfloat16, which the log says.

        Args:
            products: what they shall be of (`sparse_attn.kernels.cpu.packed.products_with`).

        Raises:
            ModelError: as `build`.
        """
        check_memory(self.name, self.file.num_bytes, "the file's blocks", "cpu")
        names, processor = self._names_and_processor()
        blocks = {names[t.name]: t for t in self._matrices() if t.kind != "F32"}
        plain = self._weights_of(names, processor, torch.float32, blocks)
        # In their place something of their shape that takes no memory, for transformers checks what it is given.
        stand_ins = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in blocks.items()}
        model = self._built({**plain, **stand_ins}, torch.float32, {"device_map": None})
        for name in [name for name, layer in model.named_modules() if can_be_packed(layer)]:
            if f"{name}.weight" in blocks:
                put_packed(model, name, self._packed(blocks[f"{name}.weight"], processor, products))
                blocks[f"{name}.weight"].forget()  # or the file would be held twice
            elif name == "lm_head" and isinstance(model.get_input_embeddings(), PackedEmbedding):  # one weight for both
                put_packed(model, name, model.get_input_embeddings().packed)
        return model

    def _packed(self, tensor: GGUFTensor, processor: Any, products: Products) -> PackedWeight:
        """A matrix in its blocks; their rows in transformers' order, which is what its rules of matrices change."""
        order = processor.process(weights=np.arange(tensor.shape[0])[:, None], name=tensor.name).weights[:, 0]
        if tensor.kind not in KINDS:
            log.warning("blocks of this kind are kept in bfloat16", kind=tensor.kind, tensor=tensor.name)
            plain = torch.from_numpy(_dequantised(tensor)[order])
            return pack_tensor(plain, "BF16", products=products)
        rows, order = torch.from_numpy(tensor.data), torch.from_numpy(np.ascontiguousarray(order))
        same = bool((order == torch.arange(len(order))).all())
        return pack(rows, tensor.kind, tensor.shape[1], order=None if same else order, products=products)

    def _names_and_processor(self) -> tuple[dict[str, str], Any]:
        """The parameters' names in transformers by those in the file, and transformers' rules of tensors.

        Raises:
            ModelError: the file's tensors are not those of its configuration.
        """
        config: Any = self.config
        model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        try:
            with torch.device("meta"):
                empty = model(config)
        except Exception as error:  # sizes that are no model's fail in any layer
            raise ModelError(
                f"{self.file.paths[0].name} describes no model: {first_line(error)}", param="model"
            ) from error
        names = _names(self.file.architecture, empty)
        self._check_tensors(empty, names)
        kind = TENSOR_PROCESSORS.get(self.file.architecture, TensorProcessor)
        return names, kind(config=config.to_dict())

    def _built(self, weights: dict[str, torch.Tensor], dtype: torch.dtype, placed: dict[str, Any]) -> Any:
        """transformers' model with these very weights."""
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(self.config)]
        model = build_whole(
            self.name,
            kind.from_pretrained,
            pretrained_model_name_or_path=None,
            config=self.config,
            state_dict=weights,
            dtype=dtype,
            **placed,
        )
        model.generation_config = self.generation()
        if _ROPE_FREQUENCIES in self.file.tensors:
            factors = _dequantised(self.file.tensors[_ROPE_FREQUENCIES]).reshape(-1)
            _scale_rope(self.file.paths[0].name, model, factors)
        return model

    def _weights_of(
        self, names: dict[str, str], processor: Any, dtype: torch.dtype, without: Container[str] = ()
    ) -> dict[str, torch.Tensor]:
        """The weights by transformers' names, ``without`` some; the model takes these very tensors."""
        weights = {}
        for tensor in self._weights():
            if names[tensor.name] in without:
                continue
            plain = processor.process(weights=_dequantised(tensor), name=tensor.name).weights
            # Copied into torch's own memory, which is aligned to a cache line; numpy's is not.
            weights[names[tensor.name]] = torch.from_numpy(np.ascontiguousarray(plain)).to(dtype, copy=True)
        return weights

    def _matrices(self) -> Iterator[GGUFTensor]:
        return (tensor for tensor in self._weights() if len(tensor.shape) == 2)

    def _weights(self) -> Iterator[GGUFTensor]:
        return (tensor for tensor in self.file.tensors.values() if tensor.name != _ROPE_FREQUENCIES)

    def _check_tensors(self, empty: Any, names: dict[str, str]) -> None:
        """Compare the table of tensors with the parameters of the configuration, by transformers' names."""
        expected = {name: tuple(value.shape) for name, value in empty.state_dict().items()}
        if empty.config.tie_word_embeddings:
            expected.pop("lm_head.weight", None)
        found = {names.get(tensor.name, tensor.name): tensor.shape for tensor in self._weights()}
        shared = found.keys() & expected.keys()
        other = {key: (found[key], expected[key]) for key in shared if found[key] != expected[key]}
        refuse_unlike(self.name, expected.keys() - found.keys(), found.keys() - expected.keys(), other)


def _tokenizer(file: GGUFFile, tokens: list[str]) -> Any:
    """transformers' tokenizer of a file's metadata, which are not read again as by its own ``gguf_file``.

    Nor is it given a name, by which transformers would ask the hub about a vocabulary as large as some of Mistral's.
    """
    from transformers.integrations.gguf import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    said = {key.removeprefix("tokenizer."): value for key, value in file.metadata.items()}
    parts: dict[str, dict[str, Any]] = {
        group: {name: said[key] for key, name in table.items() if key in said}
        for group, table in GGUF_TOKENIZER_MAPPING.items()
    }
    numbers = {name: said.get(f"ggml.{key}") for key, name in _SPECIAL.items()}
    special = {name.removesuffix("_id"): None if n is None else tokens[n] for name, n in numbers.items()}
    adds_bos = {"add_bos_token": True} if said["ggml.model"] == "llama" else {}  # where it does not say
    backend, more = convert_gguf_tokenizer(file.architecture, parts["tokenizer"])
    found: Any = PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast)
    found._tokenizer = backend  # given as tokenizer_object it would be copied, through JSON
    PreTrainedTokenizerFast.__init__(found, **{**adds_bos, **parts["tokenizer_config"], **special, **more})
    return found


def _names(architecture: str, model: Any) -> dict[str, str]:
    """The parameters of a transformers model by their names in GGUF."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    table = get_tensor_name_map(number, model.config.num_hidden_layers)
    names = {table.get_name(name, try_suffixes=(".weight", ".bias")): name for name in model.state_dict()}
    return {stored: name for stored, name in names.items() if stored is not None}


def _dequantised(tensor: GGUFTensor, rows: int | None = None) -> np.ndarray:
    """The numbers of a tensor in its shape, or of its first rows; float32.

    Raises:
        ModelError: the package gguf cannot read its kind.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        plain = dequantize(tensor.data[:rows], GGMLQuantizationType[tensor.kind])
    except NotImplementedError as error:
        raise ModelError(
            f"The tensor {tensor.name} is of the kind {tensor.kind}, which the package gguf does not dequantise.",
            hint="Take a file of kind Q4_K_M or Q8_0.",
            param="model",
        ) from error
    plain = plain.astype(np.float32, copy=not plain.flags.writeable)
    return plain.reshape(tensor.shape if rows is None else (-1, tensor.shape[-1]))


def _scale_rope(file: str, model: Any, factors: np.ndarray) -> None:
    """Llama 3's scaling, which a file holds as what each frequency is divided by."""
    rotary = model.model.rotary_emb
    if rotary.inv_freq.shape != factors.shape or not bool((factors > 0).all()):
        raise ModelError(f"{file} has {len(factors)} factors of RoPE, not {len(rotary.inv_freq)}.", param="model")
    if not math.isclose(float(rotary.attention_scaling), 1.0):
        raise ModelError(f"{file} scales RoPE twice, by its metadata and by {_ROPE_FREQUENCIES}.", param="model")
    rotary.inv_freq = rotary.inv_freq / torch.from_numpy(factors).to(rotary.inv_freq)
