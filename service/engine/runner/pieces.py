"""Steps of many rows replayed in pieces: what rows compute alone from CUDA graphs, attention between them as it comes.

A prompt's chunk beside decodes has other lengths in each step, and how its attention is cut, planned and masked follows
from them: no graph can hold it. Between two attentions, though, a row sees no other, and a layer is dozens of launches,
which take the host longer than the GPU until a step has a thousand rows or so. So the forward is captured once for each
of some numbers of rows and cut where it comes to attention, as vLLM's piecewise graphs are; the attention function
itself ends one graph and begins the next, so that the model needs no compiler. A replay is the pieces in turn and
between them the attention of the step at hand, whatever that is: any policy, drafts, head groups.

Queries, keys, values and outputs cross the cuts in buffers that all layers and sizes share. Rows of nobody are computed
and read by nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sparse_attn.backend import attend_layer
from sparse_attn.batch import AttnBatch, GroupTables
from sparse_attn.host_values import on_device
from sparse_attn.kv.pool import KVPool

WANTED = 128
"""Rows of a step whose logits a replay gives: those of its decodes and drafts, and one of each prompt that ends."""

_STEPS = ((512, 64), (1024, 128), (2048, 256))  # up to so many rows, sizes so far apart


class Recorder(Protocol):
    """What captures launches; the pieces of a forward share its memory."""

    def begin(self) -> None:
        """Capture from here on, on this thread, instead of running."""

    def end(self) -> Callable[[], Any]:
        """What was captured since `begin`, to be launched again on the same addresses."""


def record_whole(recorder: Recorder, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture a step in one piece; what replays it gives the captured result."""
    recorder.begin()
    try:
        out = step()
    finally:
        launch = recorder.end()

    def replay() -> Tensor:
        launch()
        return out

    return replay


def piece_sizes(step_tokens: int) -> list[int]:
    """Numbers of rows worth pieces where a step has up to ``step_tokens``, ascending; more are bound by computing."""
    sizes, at = [], 0
    for end, apart in _STEPS:
        while at < min(end, step_tokens):
            at += apart
            sizes.append(at)
    return sizes


@dataclass(frozen=True)
class _Cut:
    """The attention between two pieces, as `attend_layer` takes it."""

    layer: int
    scale: float
    softcap: float
    window: int


class PiecedForwards:
    """The forwards of some numbers of rows, each captured in pieces.

    Args:
        sizes: numbers of rows.
        recorder: captures the pieces.

    Raises:
        RuntimeError: the model does something between its attentions that cannot be captured, or memory is out.
    """

    def __init__(self, model: Any, pool: KVPool, sizes: Sequence[int], recorder: Recorder) -> None:
        self._model, self._recorder = model, recorder
        self._sizes = sorted(sizes)
        most, device = self._sizes[-1], pool.device
        self._token_ids, self._positions = (torch.zeros(most, dtype=torch.int64, device=device) for _ in range(2))
        self._wanted = torch.zeros(min(WANTED, most), dtype=torch.int64, device=device)
        self._crossing: list[Tensor] = []  # q, k, v and what becomes of them, [rows, heads, D] each
        nobody = torch.zeros(0, dtype=torch.int32, device=device)
        slots = torch.full((most,), -1, dtype=torch.int64, device=device)
        self._batch = AttnBatch(pool, nobody, nobody, [GroupTables(nobody[None], slots)], self._positions)
        self._forwards: dict[int, tuple[list[Callable[[], Any]], list[_Cut], Tensor]] = {}
        for size in reversed(self._sizes):  # the smaller ones find room in the memory of the largest
            self._forwards[size] = self._captured(size)

    def takes(self, rows: int, wanted: int) -> bool:
        """Whether a step of so many rows is held, of which so many logits are read."""
        return rows <= self._sizes[-1] and wanted <= min(WANTED, self._size(rows))

    def __call__(self, batch: AttnBatch, token_ids: Tensor, wanted: Sequence[int]) -> Tensor:
        """The logits [len(wanted), V] of a step that it takes. ``token_ids`` int64 [T]."""
        rows = len(token_ids)
        pieces, cuts, logits = self._forwards[self._size(rows)]
        self._token_ids[:rows] = token_ids
        self._positions[:rows] = batch.positions
        self._wanted[: len(wanted)] = on_device(wanted, torch.int64, self._wanted.device)
        q, k, v, out = (side[:rows] for side in self._crossing)
        for piece, cut in zip(pieces, cuts, strict=False):  # behind the last cut there is one more piece
            piece()
            out.copy_(attend_layer(batch, cut.layer, q, k, v, cut.scale, cut.softcap, cut.window))
        pieces[-1]()
        batch.kernels = {f"{name}+pieces" for name in batch.kernels}
        return logits[: len(wanted)].clone()  # the next step writes where they lie

    def _size(self, rows: int) -> int:
        return next(size for size in self._sizes if size >= rows)

    def _captured(self, rows: int) -> tuple[list[Callable[[], Any]], list[_Cut], Tensor]:
        pieces: list[Callable[[], Any]] = []
        cuts: list[_Cut] = []

        def cross(
            _: AttnBatch, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float, window: int
        ) -> Tensor:
            if not self._crossing:  # of the first forward, which has the most rows
                self._crossing = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, q)]
            for side, new in zip(self._crossing, (q, k, v), strict=False):
                side[:rows] = new
            return self._crossing[3][:rows]

        def cut(batch: AttnBatch, layer: int, *operands: Any) -> Tensor:
            out = cross(batch, layer, *operands)
            pieces.append(self._recorder.end())
            cuts.append(_Cut(layer, *operands[3:]))
            self._recorder.begin()
            return out

        self._batch.instead = cross
        self._forward(rows)  # libraries make themselves ready
        self._batch.instead = cut
        self._recorder.begin()
        try:
            logits = self._forward(rows)
        finally:
            last = self._recorder.end()
        return [*pieces, last], cuts, logits

    def _forward(self, rows: int) -> Tensor:
        out = self._model(
            input_ids=self._token_ids[None, :rows],
            position_ids=self._positions[None, :rows],
            use_cache=False,
            attn=self._batch,
            logits_to_keep=self._wanted[: min(WANTED, rows)],
        )
        return out.logits[0]  # type: ignore[no-any-return]
