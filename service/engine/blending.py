"""Prompts put together of passages that were read before: whose KV is copied into their places, and who waits for it.

A request that asks for the policy ``blend`` waits until each of its passages is in the store; what is not is read
alone first, as rows of steps. Then the request runs as any other, but its chunks pass over the tokens whose keys and
values are copied, turned to their positions (`sparse_attn.kv.rotation`). The first tokens of each passage are computed
in place (EPIC, arXiv 2410.15332), those that differ most from what was kept (`deviation`), and all that stands between
the passages. What lies in such pages is private: the prefix cache holds what is exact.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from service.engine.deviation import ShallowReading, without
from service.engine.kv.passage_store import PassageKV, PassageStore, passage_key
from service.engine.loading.checkpoint import LoadedModel
from service.engine.params import SamplingParams
from service.engine.request import Priority, Reading, Request
from service.engine.runner.model_runner import ModelRunner
from service.engine.scheduler import Scheduler
from service.engine.spans import PassageSpans
from service.engine.step import Slice
from service.errors import InvalidRequest
from sparse_attn.errors import UnsupportedModelFeature
from sparse_attn.kv.rotation import Rotation
from sparse_attn.plan.policies import Blend

log = structlog.get_logger(__name__)


@dataclass
class _Piece:
    """The tokens of a prompt that come from one passage, and the passage once it is there."""

    span: range
    first: int
    key: bytes
    kept: PassageKV | None = None


@dataclass
class _Blended:
    request: Request
    policy: Blend
    preface: list[int]
    salt: str
    pieces: list[_Piece]
    hits: int = 0
    waits: bool = True
    shallow: ShallowReading | None = None

    def missing(self) -> list[_Piece]:
        return [piece for piece in self.pieces if piece.kept is None]


class Blending:
    """The blended requests of an engine and the store that they draw on.

    At most ``max_running`` of them hold passages; the others have not looked for theirs yet.
    """

    def __init__(
        self, loaded: LoadedModel, runner: ModelRunner, scheduler: Scheduler, store: PassageStore, max_running: int
    ) -> None:
        self.store = store
        self._loaded = loaded
        self._runner = runner
        self._scheduler = scheduler
        self._max_running = max_running
        self._rotation: Rotation | None = None  # found in the model when it is first wanted
        self._new: deque[_Blended] = deque()
        self._begun: dict[str, _Blended] = {}
        self._readings: dict[bytes, Request] = {}

    def open(self, request: Request, policy: Blend, spans: PassageSpans | None, salt: str) -> None:
        """Let a request wait for its passages.

        Args:
            salt: of what is exact, by which passages are known.

        Raises:
            InvalidRequest: it has no passages, asks for what a blend cannot give, or the model's keys cannot be moved.
        """
        check_blendable(request.params, spans)
        assert spans is not None
        if not all(span.stop < request.prompt_len for span in spans.passages):
            raise InvalidRequest("The prompt ends with a passage: nothing is asked of it.", param="attention")
        self.check_movable()
        ids = request.token_ids
        preface = ids[: spans.preface]
        pieces = [
            _Piece(span, policy.first, self._key(salt, preface, ids[span.start : span.stop]))
            for span in spans.passages
            if len(span) > policy.first and policy.share < 1
        ]
        request.fills = [piece.span[piece.first :] for piece in pieces]
        request.parked = bool(pieces)
        request.blend = policy
        if pieces:
            self._new.append(_Blended(request, policy, preface, salt, pieces))

    def check_movable(self) -> None:
        """Refuse a model whose keys cannot be moved. Raises InvalidRequest."""
        if self._loaded.ranks is not None:
            raise InvalidRequest("blend is not there for a model over several processes.", param="attention")
        try:
            self._rotation = self._rotation or Rotation.of_model(self._loaded.model, self._loaded.kv_shape)
        except UnsupportedModelFeature as error:
            raise InvalidRequest(f"blend: {error}.", param="attention") from error

    def resume(self, fail: Callable[[Request, Exception], None]) -> None:
        """Look for the passages of those who are next, and let run who has all of his.

        fail: ends a request of which a passage could not be read.
        """
        while self._new and len(self._begun) < self._max_running:
            blended = self._new.popleft()
            self._begun[blended.request.id] = blended
            self._look(blended)
        ended = {key for key, reading in self._readings.items() if reading.finish_reason is not None}
        choosing = False
        for blended in [one for one in self._begun.values() if one.waits]:
            missing = blended.missing()
            if any(piece.key in ended for piece in missing):
                fail(blended.request, RuntimeError("a passage of the prompt could not be read"))
            elif not missing and not (choosing and blended.policy.share):
                choosing |= blended.policy.share > 0  # which takes the time of rows: of one request a step
                try:
                    blended.waits = blended.request.parked = not self._choose(blended)
                except Exception as error:
                    fail(blended.request, error)
        for key in ended:
            del self._readings[key]

    def _choose(self, blended: _Blended) -> bool:
        """Go on with choosing which tokens are computed; whether that is done."""
        if not blended.policy.share:
            return True
        pieces = blended.pieces
        if blended.shallow is None:
            ids = blended.request.token_ids[: pieces[-1].span.stop]
            blended.shallow = ShallowReading(self._loaded.model, self._runner.pool, ids)
        if not blended.shallow.read(self._scheduler.config.max_step_tokens):
            return False
        deviations = torch.cat([self._deviation(blended.shallow, piece) for piece in pieces])
        blended.shallow = None
        count = math.ceil(blended.policy.share * len(deviations)) + int(deviations.isinf().sum())
        chosen = torch.zeros(len(deviations), dtype=torch.bool)
        chosen[deviations.argsort(descending=True, stable=True)[:count]] = True
        blended.request.fills = [
            gap
            for piece, own in zip(pieces, chosen.split([len(piece.span) for piece in pieces]), strict=True)
            for gap in without(piece.span, [piece.span[i] for i in own.nonzero()[:, 0].tolist()])
        ]
        return True

    def _deviation(self, shallow: ShallowReading, piece: _Piece) -> torch.Tensor:
        """That of a passage's tokens; infinite for those that are computed anyway."""
        assert piece.kept is not None
        found = shallow.deviation(piece.span, piece.kept.values(shallow.layer))
        found[: piece.first] = math.inf
        return found

    def fill(self, part: Slice) -> None:
        """Copy what a slice passes over into the pages of its request.

        A passage is copied in one piece: what is computed in between is written over it in the forward.
        """
        assert self._rotation is not None
        for piece in self._begun[part.request.id].pieces:
            own = [fill for fill in part.fills if fill.start in piece.span]
            if not own:
                continue
            assert piece.kept is not None
            start, span = piece.span.start, range(own[0].start, own[-1].stop)
            k, v = piece.kept.part(range(span.start - start, span.stop - start), self._runner.pool.device)
            k = self._rotation.turn(k, start - piece.kept.start)
            self._runner.put_tokens(part.request.pages, span, k, v)

    def read_alone(self, read: Request, preface: int) -> tuple[bytes, PassageKV]:
        """A passage that was read behind a preface, and what it is known by."""
        ids = read.token_ids
        k, v = self._runner.get_tokens(read.pages, range(preface, len(ids)))
        return self._key(read.salt, ids[:preface], ids[preface:]), PassageKV.of(k, v, preface, self.store.int8)

    def close(self, request: Request) -> dict[str, Any]:
        """Forget a request, wherever it is; returns its figures."""
        if request.blend is None:
            return {}
        self._new = deque(one for one in self._new if one.request is not request)
        blended = self._begun.pop(request.id, None)
        return {
            "passage_tokens": sum(len(piece.span) for piece in blended.pieces) if blended else 0,
            "passage_hits": blended.hits if blended else 0,
            "filled_tokens": sum(map(len, request.fills)),
        }

    @property
    def waits(self) -> bool:
        """Whether a request, or a passage that is read, is still its affair."""
        return bool(self._new or self._begun or self._readings)

    def _key(self, salt: str, preface: Sequence[int], token_ids: Sequence[int]) -> bytes:
        return passage_key(f"{salt}/int8" if self.store.int8 else salt, preface, token_ids)

    def _look(self, blended: _Blended) -> None:
        """Find its passages, or have them read."""
        for piece in blended.pieces:
            piece.kept = self.store.find(piece.key, len(piece.span))
            if piece.kept is not None:
                blended.hits += len(piece.span)
            elif piece.key not in self._readings:
                self._read(blended, piece)

    def _read(self, blended: _Blended, piece: _Piece) -> None:
        span, start = piece.span, len(blended.preface)
        ids = [*blended.preface, *blended.request.token_ids[span.start : span.stop]]

        def take(read: Request) -> None:
            self._give(*self.read_alone(read, start))

        wanted = Reading(on_read=take, priority=Priority.DRAFT, private=True)
        reading = Request("passage", ids, SamplingParams(), reading=wanted)
        reading.salt = blended.salt
        self._readings[piece.key] = reading
        self._scheduler.add(reading)

    def _give(self, key: bytes, kept: PassageKV) -> None:
        """A passage was read: it is kept, and whoever waits for it has it."""
        del self._readings[key]
        self.store.keep(key, kept)
        for blended in self._begun.values():
            for piece in blended.missing():
                if piece.key == key:
                    piece.kept = kept


def check_blendable(params: SamplingParams, spans: PassageSpans | None) -> None:
    """Refuse a blend of nothing. Raises InvalidRequest."""
    if spans is None:
        raise InvalidRequest(
            "blend puts a prompt together of passages, and this one has none that can be told apart.",
            hint="Ask about documents in mode retrieval or long, or with another attention policy.",
            param="attention",
        )
    if params.prompt_logprobs is not None:
        raise InvalidRequest("Log-probabilities of a prompt need all of it computed, not blended.", param="attention")
