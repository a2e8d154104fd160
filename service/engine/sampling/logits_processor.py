"""What one request does to the model's logits before its tokens are chosen: constraints or forced tokens, then
penalties."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from drafters.sampling.penalties import PenalisedText, Penalties
from drafters.tree import DraftTree
from service.engine.sampling.constraint import ConstrainedText
from service.engine.sampling.forced import ForcedText


class LogitsProcessor:
    """The changes that one request asks for."""

    def __init__(self, constrained: ConstrainedText | ForcedText | None, penalised: PenalisedText | None) -> None:
        self._constrained = constrained
        self._penalised = penalised

    @classmethod
    def of(
        cls,
        constrained: ConstrainedText | ForcedText | None,
        penalties: Penalties,
        prompt: Sequence[int],
        temperature: float,
        vocab_size: int,
    ) -> LogitsProcessor | None:
        """What a request asks for, or None where its tokens are chosen from the model's own logits."""
        if penalties == Penalties():
            return cls(constrained, None) if constrained is not None else None
        return cls(constrained, PenalisedText(penalties, prompt, temperature, vocab_size))

    def __call__(self, logits: Tensor, tokens: Sequence[int], tree: DraftTree) -> Tensor:
        """Logits [n + 1, V] behind the text's last token and the tree's nodes -> those that are chosen from.

        Raises:
            RuntimeError: the output can no longer be constrained.
        """
        if self._constrained is not None:
            logits = self._constrained.adjust(logits, tokens, tree)
        if self._penalised is not None:
            logits = self._penalised.adjust(logits, tokens, tree)
        return logits
