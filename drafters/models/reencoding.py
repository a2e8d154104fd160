"""A draft model of another vocabulary: its text is re-encoded in the target's (cf. arXiv 2502.05202, exact
match).

The draft session follows the *text* of the output. A guess is a chain: the draft model's greedy tokens,
decoded and encoded again. Where a piece of text is cut differently by the two tokenizers, the guess may be
wrong; the answer is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from drafters.base import Drafter, RequestState
from drafters.calibration import Calibration
from drafters.protocols import DraftModel, DraftSession, TextCodec
from drafters.tree import EMPTY, DraftTree


class ReencodingDrafter(Drafter):
    """`draft_model`, or `rag` with a `prompt` of chunks, across vocabularies; one request."""

    def __init__(
        self,
        model: DraftModel,
        calibration: Calibration,
        codec: TextCodec,
        draft_codec: TextCodec,
        *,
        length: int = 6,
        name: str = "draft_model",
        prompt: Callable[[RequestState], Sequence[int]] | None = None,
    ) -> None:
        """prompt: what the model reads in place of the prompt, in the target's tokens; None for the prompt."""
        self.name = name
        self._prompt = prompt
        self._model = model
        self._cells = calibration.cells
        self._offset = calibration.block(f"{name}/reencoded", np.array([0.6]))
        self._codec = codec
        self._draft_codec = draft_codec
        self._length = length
        self._session: DraftSession | None = None
        self._read = 0  # state.tokens[:_read] are in the session, as text
        self._unread: list[int] = []

    @property
    def ready(self) -> bool:
        return self._session is None or self._session.ready

    def start(self, state: RequestState) -> None:
        read = state.tokens[: state.prompt_length] if self._prompt is None else self._prompt(state)
        ids = self._draft_codec.encode(self._codec.decode([*read, *state.tokens[state.prompt_length :]]))
        self._session = self._model.open(ids[:-1])
        self._unread = ids[-1:]
        self._read = len(state.tokens)

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        if self._session is None:
            raise RuntimeError(f"{self.name}: propose before start")
        pending = self._unread + self._draft_codec.encode(self._new_text(state.tokens))
        self._read = len(state.tokens)
        self._unread = []
        if not pending or budget < 1:
            self._unread = pending
            return EMPTY
        logits = self._session.advance(pending)[-1]
        drafted = [int(logits.argmax())]
        for depth in range(min(self._length, budget) - 1):
            logits = self._session.extend([drafted[-1]], [depth - 1])[-1]
            drafted.append(int(logits.argmax()))
        self._session.rollback()
        tokens = self._continuation(state.tokens[-1], drafted)[:budget]
        scores = self._cells[self._offset] ** np.arange(1, len(tokens) + 1)
        features = np.full(len(tokens), self._offset)
        return DraftTree.of(tokens, np.arange(-1, len(tokens) - 1), scores, self.name, features)

    def finish(self, state: RequestState) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _new_text(self, tokens: Sequence[int]) -> str:
        """The text that the unread tokens add (decoded with the one before, so that a leading space is
        kept)."""
        before = tokens[max(self._read - 1, 0) : self._read]
        return self._codec.decode([*before, *tokens[self._read :]])[len(self._codec.decode(before)) :]

    def _continuation(self, root: int, drafted: list[int]) -> list[int]:
        """The target's ids of the drafted text, cut after `root`."""
        text = self._draft_codec.decode([*self._unread, *drafted])
        joined = self._codec.encode(self._codec.decode([root]) + text)
        return joined[1:] if joined[:1] == [root] else self._codec.encode(text)
