"""A checkpoint of transformers: a folder with config.json and safetensors, or a hub id that transformers fetches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import structlog
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from service.engine.loading.device import check_memory
from service.engine.loading.files import TOKENIZER_FILES, check_files, count_parameters, main_dtype
from service.engine.loading.support import quantisation_of
from service.engine.loading.weights import build_whole
from service.errors import ModelError

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class FolderModel:
    """A folder or hub id (`service.engine.loading.source.Source`).

    Attributes:
        name: as the user gave it.
        path: what transformers is told.
    """

    name: str
    path: str

    fingerprint: ClassVar[None] = None
    num_bytes: ClassVar[None] = None

    @cached_property
    def config(self) -> Any:
        """The configuration in config.json.

        Raises:
            ModelError: there is none, a file beside it is damaged, or it asks for Python of its own.
        """
        folder = Path(self.path)
        if folder.is_dir():
            check_files(self.name, folder)
        try:
            return AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        except Exception as error:  # what a configuration's values raise is of any kind
            refuse_own_code(self.name, error)
            where = "in this folder" if folder.is_dir() else "as a folder or on the hub"
            raise ModelError(
                f"No model {self.name!r} {where}: {first_line(error)}",
                hint="Give a folder with config.json and safetensors, a GGUF file, a hub id, 'embedded' or 'smollm2'.",
                param="model",
            ) from error

    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, or None where there is none (said in the log).

        Raises:
            ModelError: there is one and it cannot be read, or it asks for Python of its own.
        """
        try:
            return AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        except Exception as error:  # of the tokenizers' library too, which has no base of its own
            refuse_own_code(self.name, error)
            if any((Path(self.path) / file).is_file() for file in TOKENIZER_FILES):
                raise ModelError(
                    f"The tokenizer of the model {self.name!r} cannot be read: {first_line(error)}", param="model"
                ) from error
            log.warning("model has no tokenizer: token ids only", model=self.path, error=first_line(error))
            return None

    def generation(self) -> GenerationConfig:
        """generation_config.json, or nothing where there is none."""
        try:
            return GenerationConfig.from_pretrained(self.path)
        except OSError:
            return GenerationConfig()
        except Exception as error:  # what its values raise is of any kind
            raise ModelError(
                f"The generation_config.json of the model {self.name!r} cannot be read: {first_line(error)}",
                hint="Correct or remove it.",
                param="model",
            ) from error

    @property
    def num_parameters(self) -> int | None:
        """Numbers in its safetensors; None of a hub id, and of other weights."""
        folder = Path(self.path)
        return count_parameters(self.name, folder) if folder.is_dir() else None

    @property
    def stored(self) -> str:
        """By its configuration, else by its files; float32 of weights that a library of their own keeps packed."""
        folder = Path(self.path)
        if quantisation_of(self.config) is not None:
            return "float32"
        found = str(getattr(self.config, "dtype", None)).removeprefix("torch.")
        if found == "None" and folder.is_dir():
            found = main_dtype(self.name, folder) or found
        return found if found in ("bfloat16", "float16") else "float32"

    def build(self, dtype: torch.dtype, device: str, placed: dict[str, Any]) -> Any:
        """The model, its weights straight to the device.

        Raises:
            ModelError: memory is short (nothing was allocated), tensors are wrong, or transformers cannot load it.
        """
        parameters = self.num_parameters
        if parameters is not None and quantisation_of(self.config) is None and "device_map" in placed:
            check_memory(self.name, parameters * dtype.itemsize, str(dtype).removeprefix("torch."), device)
        return build_whole(
            self.name,
            AutoModelForCausalLM.from_pretrained,
            pretrained_model_name_or_path=self.path,
            dtype=dtype,
            **placed,
        )


def refuse_own_code(name: str, error: Exception) -> None:
    """Turn transformers' refusal to run a checkpoint's Python into one of our own.

    Raises:
        ModelError: if that is what the error says.
    """
    if "trust_remote_code" in str(error):
        raise ModelError(
            f"The model {name!r} wants to run Python of its own, which Folio never does.",
            hint="Use a checkpoint of a model type that transformers has, without auto_map.",
            param="model",
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
