"""Keys moved between positions: what was read at one place of a sequence is wanted at another.

A rotary embedding turns each pair of channels of a key by position * frequency. Where the frequencies depend on nothing
else, a key of position p becomes that of position q by a turn of (q - p) * frequency, whatever the model scales it by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_attn.batch import AttnBatch, GroupTables
from sparse_attn.errors import UnsupportedModelFeature
from sparse_attn.host_values import on_device
from sparse_attn.kv.pool import KVPool, KVShape

_PLACES = (0, 1, 37, 300)
"""positions at which a model is watched"""
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
"""of a turned key, as a share of its length; a model in 16 bits rounds the angles' sines and cosines too"""
_COARSE = 0.02
_BY_LENGTH = frozenset({"dynamic", "longrope"})
"""kinds of scaling whose frequencies depend on the longest sequence of a forward"""


@dataclass(frozen=True)
class Rotation:
    """How one model turns its keys.

    Attributes:
        frequencies: float64 [L, R / 2], of each layer's pairs of channels; zeros for a layer without positions.
        first, second: which channels of a key make the pairs; the others do not turn.
    """

    frequencies: Tensor
    first: slice
    second: slice

    @classmethod
    def of_model(cls, model: Any, shape: KVShape) -> Rotation:
        """The rotation of a model that has the paged attention, as found in its buffers and seen in its keys.

        Raises:
            UnsupportedModelFeature: the frequencies depend on more than the position, or no rotation takes its keys
                from one place to another (learned positions, say); the message names the model.
        """
        kind = type(model).__name__
        seen = _keys_at(model, shape, _PLACES)
        still = torch.zeros(shape.head_dim // 2, dtype=torch.float64)
        known = [still, *_frequencies(model, kind)]
        for interleaved in (False, True):
            found = [next((f for f in known if _explains(_of(f[None], interleaved), keys)), None) for keys in seen]
            rows = [own for own in found if own is not None]
            widths = {len(own) for own in rows if own is not still} or {len(still)}
            if len(rows) == len(seen) and len(widths) == 1:
                return _of(torch.stack([own[: min(widths)] for own in rows]), interleaved)
        raise UnsupportedModelFeature(
            f"the keys of {kind} are not moved from one position to another by a rotation known here (learned "
            "positions, ALiBi): the KV of a passage serves at one place only"
        )

    def turn(self, keys: Tensor, distance: int) -> Tensor:
        """Keys [L, T, Hkv, D], each ``distance`` positions farther on (back, if negative), computed in float32."""
        if not distance:
            return keys
        angles = (self.frequencies * distance).to(keys.device)
        cos, sin = angles.cos().float(), angles.sin().float()
        turned = torch.empty_like(keys)
        for layer, of_layer in enumerate(keys):  # one at a time, which stays in a processor's cache
            own = of_layer.to(torch.float32, copy=True)
            one, other = own[..., self.first], own[..., self.second]
            own[..., self.first], own[..., self.second] = (
                one * cos[layer] - other * sin[layer],
                other * cos[layer] + one * sin[layer],
            )
            turned[layer] = own
        return turned


def _of(frequencies: Tensor, interleaved: bool) -> Rotation:
    width = 2 * frequencies.shape[1]
    if interleaved:
        return Rotation(frequencies, slice(0, width, 2), slice(1, width, 2))
    return Rotation(frequencies, slice(0, width // 2), slice(width // 2, width))


def _frequencies(model: Any, kind: str) -> Iterator[Tensor]:
    """What the model's rotary embeddings hold, one a kind of layer. Raises UnsupportedModelFeature."""
    for module in model.modules():
        own = getattr(module, "rope_type", None)
        by_length = _BY_LENGTH.intersection(own.values() if isinstance(own, dict) else (own,))
        if by_length:
            raise UnsupportedModelFeature(
                f"{kind} has {', '.join(sorted(by_length))} scaling of its positions, by the length of the longest "
                "sequence: its keys cannot be moved"
            )
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and "original" not in name:
                yield buffer.detach().double().cpu()


def _explains(rotation: Rotation, keys: Tensor) -> bool:
    """Whether it takes the first of one layer's keys [places, Hkv, D] to each of the others."""
    if 2 * rotation.frequencies.shape[1] > keys.shape[-1]:
        return False
    most = _TOLERANCE.get(keys.dtype, _COARSE)
    for place, seen in zip(_PLACES, keys, strict=True):
        moved = rotation.turn(keys[None, :1].double(), place)[0, 0]
        if (moved - seen).norm() > most * seen.double().norm():
            return False
    return True


@torch.inference_mode()
def _keys_at(model: Any, shape: KVShape, places: tuple[int, ...]) -> list[Tensor]:
    """The keys [places, Hkv, D] of each layer for one token alone, at several positions.

    A token that sees itself alone has the same hidden states wherever it stands, so that its keys differ by its place.
    """
    parameter = next(model.parameters())
    pool = KVPool(shape, 1, 16, parameter.dtype, parameter.device)
    count, device = len(places), pool.device
    slots = torch.arange(count, device=device)
    batch = AttnBatch(
        pool=pool,
        cu_seqlens=on_device(list(range(count + 1)), torch.int32, device),
        context_lens=on_device([0] * count, torch.int32, device),
        tables=[GroupTables(torch.zeros((count, 1), dtype=torch.int32, device=device), slots)],
        positions=on_device(list(places), torch.int64, device),
    )
    ids = torch.ones((1, count), dtype=torch.int64, device=device)
    model(input_ids=ids, position_ids=batch.positions[None], use_cache=False, attn=batch, logits_to_keep=1)
    return [group_keys[0, :, :count].transpose(0, 1).cpu() for group_keys in pool.groups[0].keys]
