"""What the target makes of the training texts, kept on disk: run once, read by every drafter that is trained.

A file a sequence, named by a digest of the target, the tokens and how answers were drawn; it holds the tokens, the
states of some layers in half precision, and the target's choice after each token. Files are written whole or not at
all, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from drafters.errors import DrafterError
from drafters.heads.head import LAST, described
from drafters.protocols import Teacher
from drafters.training.data import Piece, answered

_LARGEST = 65504.0  # of half precision
_TOGETHER = 16  # prompts answered at once


@dataclass(frozen=True)
class Sequences:
    """The files of some sequences, and of which layers they hold the states, in this order."""

    files: tuple[Path, ...]
    layers: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Drawn:
    """How answers are drawn: up to `length` tokens with their prompts, at a temperature, from a seed."""

    length: int = 512
    temperature: float = 0.0
    seed: int = 0


class StatesFolder:
    """The states of one target below a folder."""

    def __init__(self, folder: Path, teacher: Teacher) -> None:
        about = json.dumps(described(teacher), sort_keys=True)
        self._target = hashlib.blake2b(about.encode(), digest_size=8).hexdigest()
        self.folder = folder / self._target
        self._teacher = teacher

    def of(
        self, pieces: Sequence[Piece], layers: Sequence[int], drawn: Drawn, report: Callable[[int, int], None]
    ) -> Sequences:
        """The sequences of these pieces; what is not there yet the target runs. `report` is told how many are there,
        and of how many.

        Raises:
            DrafterError: the disk is full or cannot be written.
        """
        wanted = tuple(sorted({*layers, LAST}))
        by_file = {self.folder / f"{self._digest(piece, drawn)}.safetensors": piece for piece in pieces}
        files, pieces = list(by_file), list(by_file.values())
        missing = [i for i, file in enumerate(files) if not _has(file, wanted)]
        report(len(files) - len(missing), len(files))
        for first in range(0, len(missing), _TOGETHER):
            some = missing[first : first + _TOGETHER]
            texts = answered(
                [pieces[i] for i in some], self._teacher, drawn.length, drawn.temperature, drawn.seed + some[0]
            )
            for i, ids in zip(some, texts, strict=True):
                self._write(files[i], ids, wanted, len(pieces[i].token_ids) if pieces[i].asks else 0)
            report(len(files) - len(missing) + first + len(some), len(files))
        return Sequences(tuple(files), wanted, sum(map(length, files)))

    def _digest(self, piece: Piece, drawn: Drawn) -> str:
        how = f"{drawn}" if piece.asks else ""
        text = f"{self._target}/{how}/{','.join(map(str, piece.token_ids))}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _write(self, file: Path, ids: list[int], layers: tuple[int, ...], prompt: int) -> None:
        states, choices = self._teacher.states(ids, layers)
        tensors = {
            "tokens": torch.tensor(ids, dtype=torch.int32),
            "choices": choices.int(),
            "states": states.clamp(-_LARGEST, _LARGEST).half().contiguous(),
        }
        part = file.with_suffix(".part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, {"layers": json.dumps(layers), "prompt": str(prompt)})
            part.replace(file)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise DrafterError(
                f"the states of the training texts cannot be written to {self.folder}: {error}; free some room or name "
                "another folder, what is there will be found again"
            ) from error


def read(file: Path, layers: Sequence[int], start: int = 0, count: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Of a sequence, from `start` on: tokens int64 [n], choices int64 [n], states float32 [n, layers, hidden]."""
    with safe_open(file, "pt") as held:
        order = json.loads(held.metadata()["layers"])
        rows = slice(start, None if count is None else start + count)
        tokens, choices = held.get_slice("tokens")[rows], held.get_slice("choices")[rows]
        states = held.get_slice("states")[rows]
    return tokens.long(), choices.long(), states[:, [order.index(layer) for layer in layers]].float()


def prompt(file: Path) -> int:
    """How many of a sequence's tokens are a prompt that the target answered; 0: it is a text."""
    with safe_open(file, "pt") as held:
        return int(held.metadata()["prompt"])


def _has(file: Path, layers: Sequence[int]) -> bool:
    """Whether a file is there and holds the states of these layers."""
    if not file.is_file():
        return False
    try:
        with safe_open(file, "pt") as held:
            return set(layers) <= set(json.loads(held.metadata()["layers"]))
    except (SafetensorError, OSError, ValueError):
        return False


def length(file: Path) -> int:
    """Tokens of a sequence."""
    with safe_open(file, "pt") as held:
        return int(held.get_slice("tokens").get_shape()[0])
