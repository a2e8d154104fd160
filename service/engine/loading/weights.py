"""Building a model from its weights: each tensor is there, is known and fits, or the model is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

from service.errors import ModelError

SHOWN = 3
_DERIVED = re.compile(r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|position_ids)$")
"""Tables that older versions of transformers saved and that every model computes anew."""


def build_whole(name: str, build: Callable[..., Any], **options: Any) -> Any:
    """A model by transformers' ``from_pretrained``, which by itself fills what a checkpoint lacks with random numbers.

    Args:
        build: some ``from_pretrained``; ``options`` go to it.

    Raises:
        ModelError: tensors are missing, unexpected or of another shape; those that are tied or derived are neither.
    """
    with _own_report():
        model, report = build(
            **options, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
        )
    shapes = {key: (tuple(found), tuple(expected)) for key, found, expected in report["mismatched_keys"]}
    unexpected = [key for key in report["unexpected_keys"] if not _DERIVED.search(key)]
    refuse_unlike(name, report["missing_keys"], unexpected, shapes)
    return model


def refuse_unlike(
    name: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    """Refuse weights that are not those of the configuration; ``mismatched`` has the shapes found and expected.

    Raises:
        ModelError: names the first few tensors of each kind.
    """
    shapes = [f"{key} is {_shape(a)}, not {_shape(b)}" for key, (a, b) in sorted(mismatched.items())]
    faults = [
        _listed("missing", sorted(missing)),
        _listed("not of this configuration", sorted(unexpected)),
        _listed("of another shape", shapes),
    ]
    said = "; ".join(fault for fault in faults if fault)
    if said:
        raise ModelError(
            f"The weights of the model {name!r} do not fit its configuration: {said}.",
            hint="The checkpoint is incomplete or its config is another model's; fetch it again.",
            param="model",
        )


def _listed(kind: str, tensors: list[str]) -> str:
    if not tensors:
        return ""
    more = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
    count = "1 tensor is" if len(tensors) == 1 else f"{len(tensors)} tensors are"
    return f"{count} {kind} ({', '.join(tensors[:SHOWN])}{more})"


def _shape(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes)) or "a single number"


@contextmanager
def _own_report() -> Any:
    """transformers' own report is a table on stderr; what is in it becomes one sentence here."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
