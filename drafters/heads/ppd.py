"""PPD (arXiv 2405.18628): embeddings are trained that stand behind the text, and after which the target itself guesses.

Prompt token k stands k places behind a token and sees the text up to it and the prompt tokens before; the state that
the whole target makes of it is taken for one that guesses the token k places on. Of the target nothing changes. In an
engine prompt tokens ride in the verification, below the tokens that it may end at (`models.riding`), so that a guess
takes no forward of its own. There is one embedding a prompt token: the paper's ensembles of several are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from drafters.errors import DrafterError
from drafters.heads.head import LAST, Context, Guess, Head, HeadConfig, Shallow, configured, member
from drafters.heads.rows import RowsContext
from drafters.protocols import Target

_ANCHORS = 24  # places of a sequence behind which prompt tokens are put, at training


@member
class Ppd(Head):
    """Prompt tokens 1 to `depth`; `kinds` of embeddings: one for each (0), or so many for all."""

    name = "ppd"
    rate = 1e-2
    costly = False
    kinds: ClassVar[int] = 0

    def __init__(self, config: HeadConfig, target: Target) -> None:
        super().__init__(config, target)
        likeness = torch.randint(
            target.vocab_size, (self.kinds or config.depth,)
        )  # they begin as tokens that are known
        self.prompt_tokens = nn.Parameter(target.embed(likeness).detach().float().cpu().clone())

    @classmethod
    def configure(cls, target: Target, depth: int = 3, draft_vocab: int = 0) -> HeadConfig:
        return configured(cls.name, target, (LAST,), depth, 1, draft_vocab=draft_vocab)

    @property
    def prompts(self) -> Tensor:
        return self.prompt_tokens.expand(self.config.depth, -1)

    def guesses(self, states: Tensor, tokens: Tensor, generator: torch.Generator) -> Iterator[Guess]:
        at, _, rows = self.behind(tokens, generator)
        for k in range(self.config.depth):
            yield Guess(self.lm_head(rows[:, k :: self.config.depth]), at)

    def behind(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Places int64 [N] drawn of tokens [B, T], the target's last states of the text [B, T, hidden], and those of
        the prompt tokens behind the places [B, N · depth, hidden]: one forward of the target.

        Raises:
            DrafterError: the target shows no gradients.
        """
        through = getattr(self._target, "through", None)
        if through is None:
            raise DrafterError(f"the trained drafter {self.name} learns through the whole target, which is not at hand")
        depth, length = self.config.depth, tokens.shape[1]
        at = torch.randperm(length - depth, generator=generator)[:_ANCHORS].sort().values
        anchor, place = at.repeat_interleave(depth), torch.arange(1, depth + 1).repeat(len(at))
        own = anchor[:, None] == anchor
        seen = torch.ones(length + len(place), length + len(place), dtype=torch.bool).tril()
        seen[length:, :length] = torch.arange(length) <= anchor[:, None]
        seen[length:, length:] = own if self.mutual else own.tril()
        embedded = torch.cat((self.embed(tokens), self.prompts.repeat(len(at), 1).expand(len(tokens), -1, -1)), 1)
        rows = through(embedded, torch.cat((torch.arange(length), anchor + place)), seen)
        return at, rows[:, :length], rows[:, length:]

    def begin(self, shallow: Shallow | None = None) -> Context:
        if shallow is None:
            raise DrafterError(f"the trained drafter {self.name} needs an engine that runs its prompt tokens")
        return _Behind(self, shallow)


class _Behind(RowsContext):
    """The guesses after the prompt tokens behind the last pair, as many as were run."""

    def __init__(self, head: Ppd, shallow: Shallow) -> None:
        super().__init__(self._of_prompts)
        self._head, self._shallow = head, shallow

    def _of_prompts(self, states: Tensor, tokens: Tensor, first: int) -> Tensor:
        head, count = self._head, self._head.config.depth
        ids = torch.arange(count, device=states.device) + len(head.t2d)
        return head.lm_head(self._shallow(ids, range(-1, count - 1)))  # type: ignore[no-any-return]
