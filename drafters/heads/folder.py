"""Trained drafters on disk: a folder with config.json and the head's own weights, in any of the formats that Folio
knows; which one, its config.json tells."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from drafters.errors import DrafterError
from drafters.heads import (  # noqa: F401 - members make themselves known
    chimera,
    clover,
    dflash,
    eagle,
    eagle3,
    falcon,
    hydra,
    kangaroo,
    medusa,
    mtp,
    ppd,
    s2d,
    speculators,
    tidar,
)
from drafters.heads.head import HEADS as HEADS
from drafters.heads.head import Head, HeadConfig
from drafters.protocols import Target

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
JUDGE = "judge.safetensors"
"""Beside a drafter's own weights (`models.judge`)."""
_OWN = "folio_drafter"
_FORMAT = 1


def is_head(folder: str | Path) -> bool:
    """Whether a folder holds a trained drafter, rather than a model."""
    described = _described(Path(folder))
    return described is not None and (_OWN in described or speculators.is_known(described))


def load_head(folder: str | Path, target: Target) -> Head:
    """The trained drafter of a folder, ready to draft for this target.

    Raises:
        DrafterError: it is damaged, of a format that Folio does not know, or was made for another target.
    """
    path = Path(folder)
    found = _described(path)
    if found is None:
        raise DrafterError(f"there is no trained drafter in {path}: it needs a {CONFIG}")
    weights = _weights(path)
    if _OWN in found:
        if found[_OWN].get("format") != _FORMAT:
            raise DrafterError(f"{path} is of a newer format ({found[_OWN].get('format')}): update Folio")
        config = HeadConfig.of(found[_OWN]["head"])
    else:
        config, weights = speculators.read(found, weights, target)
    return fill(config, weights, target)


def fill(config: HeadConfig, weights: dict[str, Tensor], target: Target) -> Head:
    """A head of this configuration and weights, and of what the target lends. Raises DrafterError for other weights."""
    if config.name not in HEADS:
        raise DrafterError(f"there is no trained drafter of the kind {config.name!r}; Folio has {', '.join(HEADS)}")
    head = HEADS[config.name](config, target)
    head.own(weights.pop("lm_head.weight", None), weights.pop("embed_tokens.weight", None))
    lacking = sorted(set(head.own_state()) - set(weights) - {"lm_head.weight", "embed_tokens.weight"})
    unknown = sorted(set(weights) - set(head.own_state()))
    if lacking or unknown:
        said = f"lacks {', '.join(lacking)}" if lacking else f"has {', '.join(unknown)}, which nothing reads"
        raise DrafterError(f"the weights of the trained drafter {config.name} are not its own: it {said}")
    try:
        head.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise DrafterError(f"the weights of the trained drafter {config.name} do not fit: {error}") from error
    if not head.owns_output:
        head.share(target)
    log.info("trained drafter %s: %d parameters of its own", head.name, head.num_parameters)
    return head.eval().requires_grad_(False)


def save_head(head: Head, folder: Path) -> None:
    """Write a head: in the *speculators* format, if that has its kind; else in Folio's own. The folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = (
        speculators.write(head.config)
        if head.name in speculators.WRITTEN
        else {_OWN: {"format": _FORMAT, "head": head.config.as_dict()}}
    )
    state = {name: _kept(tensor) for name, tensor in head.own_state().items()}
    temporary = folder / f"{WEIGHTS}.part"
    save_file(state, temporary)
    temporary.replace(folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def _kept(tensor: Tensor) -> Tensor:
    """As it is kept: numbers in half precision."""
    return (tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor).contiguous()


def _described(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError as error:
        raise DrafterError(f"{folder / CONFIG} is damaged: {error}") from error
    return found if isinstance(found, dict) else None


def _weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder, in float32 where they are numbers of less."""
    found: dict[str, Tensor] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            found |= load_file(file) if file.name != JUDGE else {}
        if not found and (file := folder / "pytorch_model.bin").is_file():
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise DrafterError(f"the weights in {folder} cannot be read: {error}") from error
    if not found:
        raise DrafterError(f"{folder} has no weights: neither safetensors nor pytorch_model.bin")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}
