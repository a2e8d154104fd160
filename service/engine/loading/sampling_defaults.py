"""How the makers of a checkpoint sample from it: its generation_config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from service.errors import ModelError


@dataclass(frozen=True)
class SamplingDefaults:
    """For requests that do not say; None where the checkpoint does not either.

    Attributes:
        temperature: 0 where the checkpoint asks for no sampling (``do_sample`` is false).
        top_p: in (0, 1].
        top_k: tokens kept; 0 keeps all.
        repetition_penalty: above 0; 1 is none.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None

    @classmethod
    def of(cls, name: str, said: Any) -> SamplingDefaults:
        """Those of a transformers GenerationConfig, or of a mapping's attributes.

        Raises:
            ModelError: a value is no number of its range; the message names it.
        """
        temperature = _number(name, said, "temperature", 0.0, math.inf)
        top_k = _number(name, said, "top_k", 0, math.inf)
        return cls(
            temperature=0.0 if getattr(said, "do_sample", None) is False else temperature,
            top_p=_number(name, said, "top_p", 0.0, 1.0, open_below=True),
            top_k=None if top_k is None else int(top_k),
            repetition_penalty=_number(name, said, "repetition_penalty", 0.0, math.inf, open_below=True),
        )


def _number(name: str, said: Any, key: str, least: float, most: float, open_below: bool = False) -> float | None:
    value = getattr(said, key, None)
    if value is None:
        return None
    fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if not fits or math.isinf(value) or (open_below and value == least):
        raise ModelError(
            f"The generation_config.json of the model {name!r} has the {key} {value!r}.",
            hint="Correct or remove it.",
            param="model",
        )
    return float(value)
