"""How the makers of a checkpoint sample from it: its generation_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from service.errors import ModelError

MOST = 100.0
"""of a temperature or a penalty, as of ``SamplingParams``"""


@dataclass(frozen=True)
class SamplingDefaults:
    """For requests that do not say; None where the checkpoint does not either.

    Attributes:
        temperature: 0 where the checkpoint asks for no sampling (``do_sample`` is false), 1 where for sampling alone.
        top_p: in (0, 1].
        top_k: tokens kept; 0 keeps all.
        min_p: share of the likeliest token's probability that a token must have.
        repetition_penalty: at least 0.01; 1 is none.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def of(cls, name: str, said: Any) -> SamplingDefaults:
        """Those of a transformers GenerationConfig, or of a mapping's attributes.

        Raises:
            ModelError: a value is no number of its range; the message names it.
        """
        temperature = _number(name, said, "temperature", 0.0, MOST)
        sampled = getattr(said, "do_sample", None)
        if temperature is None and sampled is True:
            temperature = 1.0
        top_k = _number(name, said, "top_k", 0, math.inf)
        return cls(
            temperature=0.0 if sampled is False else temperature,
            top_p=_number(name, said, "top_p", 0.0, 1.0, open_below=True),
            top_k=None if top_k is None else int(top_k),
            min_p=_number(name, said, "min_p", 0.0, 1.0),
            repetition_penalty=_number(name, said, "repetition_penalty", 0.01, MOST),
        )

    def as_dict(self) -> dict[str, Any]:
        """What the checkpoint says, by name."""
        each = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in each.items() if value is not None}

    def fill(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of ``SamplingParams``: what a request gives (None: nothing), then what the makers say.

        A request for temperature 0 gets the likeliest token and nothing of the makers': what they keep of the
        distribution and what they take off repeated tokens belongs to their way of sampling. Where neither says a
        temperature, none is in the result.
        """
        asked = {name: value for name, value in given.items() if value is not None}
        theirs = {} if asked.get("temperature") == 0 else self.as_dict()
        taken = tuple(name for name in theirs if name not in asked)
        return {**theirs, **asked, "from_model": taken}


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
