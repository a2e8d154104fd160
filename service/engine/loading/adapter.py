"""A LoRA adapter: a folder with a few low-rank matrices, merged into the weights of the model that it was made for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import structlog
import torch
from transformers import GenerationConfig

from service.engine.loading.files import TOKENIZER_FILES, check_files, check_weights, read_json
from service.engine.loading.folder import FolderModel, first_line
from service.engine.loading.source import Source
from service.engine.loading.weights import refuse_unlike
from service.errors import ModelError

ADAPTER_WEIGHTS = "adapter_model.safetensors"

log = structlog.get_logger(__name__)


def adapter_base(name: str, folder: Path) -> str:
    """The name of the model that a folder's adapter was made for.

    Raises:
        ModelError: it is no LoRA adapter, names no base or an adapter as its base, or peft is not installed.
    """
    check_files(name, folder)
    if (folder / ADAPTER_WEIGHTS).is_file():
        check_weights(name, folder / ADAPTER_WEIGHTS)
    said = read_json(name, folder / "adapter_config.json")
    kind, base = said.get("peft_type"), said.get("base_model_name_or_path")
    if kind != "LORA":
        raise ModelError(f"{name!r} is an adapter of the kind {kind!r}; Folio merges LoRA alone.", param="model")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"The adapter {name!r} does not name its base model.",
            hint="Set base_model_name_or_path in its adapter_config.json.",
            param="model",
        )
    if (Path(base).expanduser() / "adapter_config.json").is_file():
        raise ModelError(f"The base of the adapter {name!r} is itself an adapter: {base!r}.", param="model")
    if find_spec("peft") is None:
        raise ModelError(
            f"{name!r} is a LoRA adapter of {base!r}, which the package peft merges, and it is not installed.",
            hint="`pip install peft`, or merge the adapter and give the merged checkpoint.",
            param="model",
        )
    return base


@dataclass(frozen=True)
class AdapterModel:
    """A LoRA folder and the model below (`service.engine.loading.source.Source`)."""

    name: str
    folder: Path
    base: Source

    fingerprint: ClassVar[None] = None
    num_bytes: ClassVar[None] = None

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def num_parameters(self) -> int | None:
        return self.base.num_parameters

    @property
    def stored(self) -> str:
        return self.base.stored

    def tokenizer(self) -> Any:
        """The folder's own, which may have new tokens, or else the base's."""
        own = any((self.folder / file).is_file() for file in TOKENIZER_FILES)
        return (FolderModel(self.name, str(self.folder)) if own else self.base).tokenizer()

    def generation(self) -> GenerationConfig:
        return self.base.generation()

    def build(self, dtype: torch.dtype, device: str, placed: dict[str, Any]) -> Any:
        """The base with the adapter's product added to its weights.

        Raises:
            ModelError: the adapter's matrices are not those that its configuration asks for in this base.
        """
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
        from peft.utils import load_peft_weights

        base = self.base.build(dtype, device, placed)
        try:
            model = get_peft_model(base, LoraConfig.from_pretrained(str(self.folder)))
            weights = load_peft_weights(str(self.folder), device=device)
            report: Any = set_peft_model_state_dict(model, weights)
        except Exception as error:  # of peft, which checks by several kinds of error
            raise ModelError(
                f"The adapter {self.name!r} cannot be merged into {self.base.name!r}: {first_line(error)}",
                param="model",
            ) from error
        missing = [key for key in report.missing_keys if "lora_" in key]
        refuse_unlike(self.name, missing, report.unexpected_keys, {})
        log.info("the adapter is merged into its base", adapter=self.name, base=self.base.name)
        return model.merge_and_unload()
