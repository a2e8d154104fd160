"""Output that begins with tokens known beforehand: a quotation, which no model can be trusted to copy.

The request runs as any other, and drafts what it likes; of every row's logits the one of the token to come is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from drafters.tree import DraftTree


class ForcedText:
    """How far one request's output has come in its tokens."""

    def __init__(self, tokens: Sequence[int], prompt_len: int) -> None:
        self._forced = tokens
        self._prompt_len = prompt_len

    def adjust(self, logits: Tensor, tokens: Sequence[int], tree: DraftTree) -> Tensor:
        """Logits [n + 1, V] behind the text's last token and the tree's nodes, -inf but for the token to come.

        Rows below a guess that is wrong are never reached, and rows behind the last forced token are free.
        """
        at = {-1: len(tokens) - self._prompt_len}  # node -> the place of the token that follows it
        for node, (parent, token) in enumerate(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True)):
            place = at.get(parent)
            if place is not None and place < len(self._forced) and token == self._forced[place]:
                at[node] = place + 1
        forced = {node + 1: self._forced[place] for node, place in at.items() if place < len(self._forced)}
        if not forced:
            return logits
        adjusted = logits.clone()
        for row, token in forced.items():
            adjusted[row] = -math.inf
            adjusted[row, token] = logits[row, token]
        return adjusted
