"""RAPID (arXiv 2502.20330): a model that reads only the retrieved chunks drafts for the one that reads
everything. It is the same model, or another checkpoint, weaker or stronger (upward speculation).

The draft prompt is the service's own (`RequestState.draft_prompt`: retrieved passages and question); where
there is none, chunks of the prompt that share rare tokens with its end are put together here. `target_mix` >
0 is the paper's knowledge transfer and changes the distribution (`target_mix.py`); without it the drafter is
lossless.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drafters.base import RequestState
from drafters.models.best_first import BestFirst
from drafters.models.draft_model import ModelDrafter
from drafters.models.pacing import Pace
from drafters.options import DraftPromptOptions
from drafters.protocols import DraftModel

# tokens of a draft prompt put together here: a sixteenth of the prompt within these bounds (the paper: 4096 tokens or
# a 24th; on a CPU the drafter's own prefill counts)
_SHORTEST, _LONGEST, _SHARE = 1024, 4096, 16
_MARGIN = 4  # a chunk is taken with this part of its length on either side


class Rag(ModelDrafter):
    """The drafter `rag`; one request."""

    name = "rag"

    def __init__(
        self,
        model: DraftModel,
        builder: BestFirst,
        options: DraftPromptOptions,
        pace: Pace | None = None,
    ) -> None:
        super().__init__(model, builder, pace)
        self._options = options

    def prompt(self, state: RequestState) -> Sequence[int]:
        return draft_prompt(state, self._options)


def draft_prompt(state: RequestState, options: DraftPromptOptions) -> Sequence[int]:
    """What the drafter reads in place of the prompt, in the target's tokens."""
    if state.draft_prompt is not None and len(state.draft_prompt):
        return state.draft_prompt
    prompt = state.tokens[: state.prompt_length]
    context = options.context or min(_LONGEST, max(_SHORTEST, len(prompt) // _SHARE))
    return select_chunks(prompt, context, options.chunk, options.question)


def select_chunks(
    prompt: Sequence[int], context: int, chunk: int = 256, question: int = 64, head: int = 64
) -> list[int]:
    """A prompt of about `context` tokens: the first `head`, the chunks nearest to the last `question`, and
    those.

    A chunk's score is the weight of the question's distinct tokens in it: the square of the inverse document
    frequency (the documents being the chunks), less for tokens far from the prompt's end. A chunk is taken with some
    tokens before and after it, for what is quoted may lie across its border; what is taken keeps its order. A prompt
    that fits is returned whole.
    """
    ids = np.asarray(prompt, dtype=np.int64)
    if len(ids) <= context:
        return ids.tolist()
    middle = ids[head : len(ids) - question]
    if not len(middle):
        return ids.tolist()
    starts = range(0, len(middle), chunk)
    # the last place of each token, counted from the end
    asked, distance = np.unique(ids[: len(ids) - question - 1 : -1], return_index=True)
    present = np.array([np.isin(asked, middle[start : start + chunk]) for start in starts])
    weight = np.log1p(len(starts) / (1 + present.sum(axis=0))) ** 2 / (1 + distance / 16)
    taken = np.zeros(len(middle), dtype=bool)
    room = max(context - head - question, chunk)
    for start in chunk * np.argsort(-(present * weight).sum(axis=1), kind="stable"):
        wider = slice(max(0, start - chunk // _MARGIN), start + chunk + chunk // _MARGIN)
        room -= int((~taken[wider]).sum())
        if room < 0 and taken.any():
            break
        taken[wider] = True
    return np.concatenate([ids[:head], middle[taken], ids[len(ids) - question :]]).tolist()
