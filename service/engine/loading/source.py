"""What every kind of model source can be asked."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import GenerationConfig


class Source(Protocol):
    """Where a model comes from. Reading its configuration reads no weights, and none of its own Python ever runs."""

    @property
    def name(self) -> str:
        """As the user gave it."""

    @property
    def config(self) -> Any:
        """The transformers configuration."""

    @property
    def fingerprint(self) -> str | None:
        """Names the weights by the bytes of their file; None where the loaded weights must be looked at."""

    @property
    def num_parameters(self) -> int | None:
        """Numbers in the weights; None where that is not known before they are loaded."""

    @property
    def num_bytes(self) -> int | None:
        """Of the file that holds the weights in blocks; None of others."""

    @property
    def stored(self) -> str:
        """What most of the weights are stored in: float32, bfloat16, float16, or blocks of a GGUF file."""

    def tokenizer(self) -> Any:
        """The tokenizer, None where there is none (said in the log)."""

    def generation(self) -> GenerationConfig:
        """What the checkpoint says of sampling and of the tokens that end an answer."""

    def build(self, dtype: torch.dtype, device: str, placed: dict[str, Any]) -> Any:
        """The model with all its weights; ``placed`` is how transformers is told the device."""
