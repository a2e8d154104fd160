"""The ancestor masks of a batch in one tensor, as the GPU kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from sparse_attn.host_values import to_device


@dataclass(frozen=True)
class TreeMasks(Sequence["Tensor | None"]):
    """Per sequence a bool [n, n] mask, ancestor or self, or None for causal; the item of a sequence is a view.

    Attributes:
        flat: uint8 [sum of n * n], 1 where a row sees a key, row by row.
        offsets: int64 [S], where each sequence's mask begins; -1 for causal.
        places: the same and n on the host: (offset, n).
        host: the masks themselves on the host, where they were made there.
    """

    flat: Tensor
    offsets: Tensor
    places: tuple[tuple[int, int], ...]
    host: tuple[Tensor | None, ...] = ()

    @classmethod
    def pack(cls, masks: Sequence[np.ndarray | Tensor | None], device: torch.device) -> TreeMasks | None:
        """From host arrays bool [n, n], in one copy to the device; None where every sequence is causal."""
        places: list[tuple[int, int]] = []
        parts: list[Tensor] = []
        end = 0
        for mask in masks:
            if mask is None:
                places.append((-1, 0))
                continue
            part = torch.as_tensor(mask).to(torch.uint8).flatten()
            places.append((end, len(mask)))
            parts.append(part)
            end += part.numel()
        if not parts:
            return None
        offsets = torch.tensor([offset for offset, _ in places], dtype=torch.int64)
        kept = tuple(None if mask is None else torch.as_tensor(mask) for mask in masks)
        return cls(to_device(torch.cat(parts), device), to_device(offsets, device), tuple(places), kept)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, s: int) -> Tensor | None: ...
    @overload
    def __getitem__(self, s: slice) -> TreeMasks: ...
    def __getitem__(self, s: int | slice) -> Tensor | TreeMasks | None:
        if isinstance(s, slice):
            return TreeMasks(self.flat, self.offsets[s], self.places[s], self.host[s])
        offset, n = self.places[s]
        return self.flat[offset : offset + n * n].view(torch.bool).view(n, n) if offset >= 0 else None
