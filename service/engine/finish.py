"""Where a request's output ends, and its text.

The one place that knows: a stop id, a stop string, or as many tokens as were asked for. A constraint ends by a stop id
too, for behind its last token it allows nothing but the end of the sequence. It is decided before a step is committed,
so that no token is ever taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from service.engine.detokenizer import Detokenizer


class FinishReason(StrEnum):
    """Why a request ended: the OpenAI words, and two more."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True)
class Emitted:
    """What of the tokens that a step brought a request keeps.

    Attributes:
        pieces: the text that each of ``token_ids`` adds; some are empty. The list is empty without a tokenizer.
        reason: why the last of them ends the output; None where it goes on.
    """

    token_ids: list[int]
    pieces: list[str] = field(default_factory=list)
    reason: FinishReason | None = None


class StopChecker:
    """The stop rule of one request, and its text so far.

    Args:
        stop_ids: tokens that end the output and belong to it.
        max_tokens: the token of this number ends it; with 0 none is kept.
        detokenizer: makes the text and finds the stop strings; None without a tokenizer.
    """

    def __init__(self, stop_ids: frozenset[int], max_tokens: int, detokenizer: Detokenizer | None = None) -> None:
        self.stop_ids = stop_ids
        self.max_tokens = max_tokens
        self._detokenizer = detokenizer

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the text; None where none did."""
        return self._detokenizer.stopped_by if self._detokenizer is not None else None

    def take(self, token_ids: Sequence[int], num_output: int) -> Emitted:
        """The tokens up to the one that ends the output, with their text; ``num_output`` came before them."""
        if not self.max_tokens:
            return Emitted([], [], FinishReason.LENGTH)
        kept: list[int] = []
        pieces: list[str] = []
        reason = None
        for token in token_ids:
            kept.append(token)
            reason = self._reason(token, num_output + len(kept))
            if self._detokenizer is not None:
                pieces.append(self._detokenizer.push([token], last=reason is not None))
                if self._detokenizer.stopped:
                    reason = FinishReason.STOP
            if reason is not None:
                break
        return Emitted(kept, pieces, reason)

    def _reason(self, token: int, num_output: int) -> FinishReason | None:
        if token in self.stop_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if num_output >= self.max_tokens else None
