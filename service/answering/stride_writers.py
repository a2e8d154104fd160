"""How an answer with retrieval under way is written: in strides, each behind the passage that was found for it.

=============  ============================  ==========================================  =============================
mode           a stride                      the next search is asked with               paper
=============  ============================  ==========================================  =============================
iterative      k tokens                      the last tokens                             RaLM, 2302.00083; 2401.14021
flare          sentences, up to one of       that sentence, without the tokens that      FLARE direct, 2305.06983
               which a token is unlikely     are least likely
iter-retgen    the whole answer              the question and that answer                Iter-RetGen, 2305.15294
=============  ============================  ==========================================  =============================

Every stride is an ordinary request to the engine: the prompt over one passage, the answer so far, some tokens more. The
engine's prefix cache keeps the pages of earlier strides, so a stride over the same passage computes what is new, a
passage that comes back finds its pages, and a guess that was wrong is undone by asking for the earlier prefix again.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar, Protocol

from retrieval.iterative.speculation import Stride, written
from retrieval.types import Hit
from service.answering.conversation.turns import fitted
from service.answering.passages import Passage
from service.answering.prompting.encoding import Encoder
from service.answering.prompting.layouts import Prompt, PromptLayout
from service.answering.question import Question
from service.engine.async_engine import AsyncEngine
from service.engine.outputs import TokenOutput
from service.engine.params import DraftSources, SamplingParams
from service.engine.ticket import Ticket
from service.errors import Conflict

SEED_STEP = 0x9E3779B97F4A7C15
"""keys the noise of each stride apart: positions repeat where a shorter passage follows a longer one"""
_QUERY_TOKENS = {"iterative": 32, "flare": 64, "iter-retgen": 192}
_LONGEST_SENTENCE = 64
_WORD = re.compile(r"\w")
_CLOSING = "\"'”’)]"


def query_tokens(question: Question) -> int:
    """Last tokens of the question and of what was written that a search is asked with."""
    return question.iterative.query_tokens or _QUERY_TOKENS[question.mode]


class Passages(Protocol):
    """Where the text of chunks is read: a ``Library``."""

    def hits(self, ids: Sequence[int], owner: str) -> list[Hit]: ...


class QueryText:
    """What a search is asked with: the last tokens of the question and of what was written, as text."""

    def __init__(self, question: str, tokens: int, tokenizer: Any) -> None:
        self._question = Encoder(tokenizer).data(" ".join(question.split()))
        self._tokens = tokens
        self._tokenizer = tokenizer

    def __call__(self, answer: Sequence[int]) -> str:
        return self._tokenizer.decode([*self._question, *answer][-self._tokens :], skip_special_tokens=True)


class StrideWriter:
    """Continues the answer behind a passage, by a request to the engine."""

    drafter: ClassVar[str | None] = None
    """of strides whose request names none; None for the engine's default"""

    def __init__(
        self,
        question: Question,
        owner: str,
        params: SamplingParams,
        library: Passages,
        layout: PromptLayout,
        engine: AsyncEngine,
        query: QueryText,
    ) -> None:
        self._question = question
        self._options = question.iterative
        self._owner = owner
        self._params = replace(params, stop=(), logprobs=None, drafter=params.drafter or self.drafter)
        self._library = library
        self._layout = layout
        self._engine = engine
        self._query = query
        self.ticket: Ticket | None = None
        """the answer's, which its strides share"""
        self._prompts: dict[int, tuple[Hit, Prompt]] = {}
        self.prompt_tokens = 0
        """of all strides, answer so far included"""
        self.reused_tokens = 0
        """of these, those whose keys and values were there already"""
        self.turns = len(question.history)
        """earlier turns that every prompt holds"""

    @property
    def pace(self) -> str:
        """How often is searched, in words."""
        raise NotImplementedError

    async def write(self, chunk: int, strides: Sequence[Stride]) -> Stride:
        """The next stride. See ``speculation.Write``."""
        raise NotImplementedError

    async def prompt(self, chunk: int) -> tuple[Hit, Prompt]:
        """The chunk and the prompt over it. Raises Conflict where its document is gone."""
        known = self._prompts.get(chunk)
        if known is None:
            known = self._prompts[chunk] = await asyncio.to_thread(self._build, chunk)
        return known

    def citing_prompt(self, hits: Sequence[Hit]) -> Prompt:
        """A prompt over all passages that were read, to find the answer's quotations in."""
        return self._over(self._question, hits)

    async def _continued(
        self, chunk: int, tokens: Sequence[int], count: int, sources: DraftSources | None = None, **more: Any
    ) -> AsyncGenerator[TokenOutput, None]:
        """At most ``count`` tokens behind the passage and those so far, as they come. more: of ``SamplingParams``."""
        _, prompt = await self.prompt(chunk)
        seed = (self._params.seed + SEED_STEP * len(tokens)) % 2**63
        params = replace(self._params, max_tokens=count, seed=seed, **more)
        ids = [*prompt.ids, *tokens]
        async with aclosing(self._engine.stream(ids, params, sources, ticket=self.ticket)) as outputs:
            async for output in outputs:
                if output.finished:
                    self.prompt_tokens += len(ids)
                    self.reused_tokens += output.stats.get("cached_tokens", 0)
                yield output

    def _finish(self, reason: str | None, tokens: int) -> str | None:
        """Why the text ends with a request of that finish reason, of which there are so many tokens then."""
        return None if reason == "length" and tokens < self._params.max_tokens else reason

    def _over(self, question: Question, hits: Sequence[Hit]) -> Prompt:
        passages = [Passage.of(hit) for hit in hits]
        return self._layout.build(question.text, passages, question.turns, instructions=question.instructions)

    def _build(self, chunk: int) -> tuple[Hit, Prompt]:
        hits = self._library.hits([chunk], self._owner)
        if not hits:
            raise Conflict(
                "A document was deleted or replaced while the answer was written from it.", hint="Ask again."
            )
        room = self._engine.window - self._params.max_tokens
        asked, prompt = fitted(self._question, lambda one: self._over(one, hits), room)
        self.turns = min(self.turns, len(asked.history))
        return hits[0], prompt


class FixedStrides(StrideWriter):
    """Mode iterative."""

    drafter = "none"  # a stride of four tokens seldom repays what a drafter costs to open

    @property
    def pace(self) -> str:
        return f"every {self._options.k} tokens"

    async def write(self, chunk: int, strides: Sequence[Stride]) -> Stride:
        before = written(strides)
        count = min(self._options.k, self._params.max_tokens - len(before))
        tokens: list[int] = []
        reason = None
        async with aclosing(self._continued(chunk, before, count)) as outputs:
            async for output in outputs:
                tokens += output.token_ids
                reason = output.finish_reason
        text = before + tokens
        return Stride(chunk, tokens, self._query(text), self._finish(reason, len(text)))


class Sentences(StrideWriter):
    """Mode flare: the sentence that a search was made for stands, whatever its probability; those behind it stand as
    long as none of their tokens is unlikely. The first that has one is only asked with, and written again.

    The paper writes every tentative sentence without a passage; here it is behind the one at hand, and so, where it
    stands, the same request.
    """

    @property
    def pace(self) -> str:
        return f"before sentences with a token of less than {self._options.theta:g}"

    async def write(self, chunk: int, strides: Sequence[Stride]) -> Stride:
        before = written(strides)
        ids: list[int] = []
        pieces: list[str] = []
        probabilities: list[float] = []
        reason = None
        start = 0  # of the sentence that is being written; what is before it stands
        count = self._params.max_tokens - len(before)
        async with aclosing(self._continued(chunk, before, count, logprobs=0)) as outputs:
            async for output in outputs:
                ids += output.token_ids
                pieces += output.pieces
                probabilities += [math.exp(one.logprob) for one in output.logprobs or ()]
                reason = output.finish_reason
                while (end := sentence_end(pieces, start, output.finished)) is not None:
                    if start and min(probabilities[start:end]) < self._options.theta:
                        likely = [ids[i] for i in range(start, end) if probabilities[i] >= self._options.beta]
                        return Stride(chunk, ids[:start], self._query(likely))
                    start = end
        return Stride(chunk, ids, self._query(ids), self._finish(reason, len(before) + len(ids)))


def sentence_end(pieces: Sequence[str], start: int, finished: bool) -> int | None:
    """One past the last token of the sentence that begins with token ``start``; None while that is not certain.

    It ends before white space behind a full stop or its like, after a line, and after 64 tokens at the latest; or where
    the text is finished.
    """
    text = ""
    for i in range(start, len(pieces)):
        stopped = _ends_line(text) or (_ends_sentence(text) and pieces[i][:1].isspace())
        if stopped or i - start == _LONGEST_SENTENCE:
            return i
        text += pieces[i]
    return len(pieces) if finished and len(pieces) > start else None


def _ends_line(text: str) -> bool:
    said = text.rstrip()
    return said.endswith(("。", "！", "？")) or ("\n" in text[len(said) :] and bool(_WORD.search(said)))


def _ends_sentence(text: str) -> bool:
    said = text.rstrip(_CLOSING)
    return said.endswith((".", "!", "?")) and bool(_WORD.search(said))


class WholeAnswers(StrideWriter):
    """Mode iter-retgen: the answer again and again, each from the passage that is found for the one before.

    It ends after so many, or with one that is the same as the one before: what is found for it would be too.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._answers: dict[int, tuple[list[int], str | None]] = {}

    @property
    def pace(self) -> str:
        return f"before each of at most {self._options.iterations} answers"

    async def write(self, chunk: int, strides: Sequence[Stride]) -> Stride:
        if chunk not in self._answers:  # which depends on nothing else
            self._answers[chunk] = await self._answer(chunk, strides)
        tokens, reason = self._answers[chunk]
        last = len(strides) + 1 >= self._options.iterations or bool(strides and strides[-1].tokens == tokens)
        return Stride(chunk, tokens, self._query(tokens), reason if last else None, whole=True)

    async def _answer(self, chunk: int, strides: Sequence[Stride]) -> tuple[list[int], str | None]:
        """From a passage; an answer from another is a source of guesses, which change nothing."""
        sources = DraftSources(documents=[stride.tokens for stride in strides[-1:]])
        tokens: list[int] = []
        reason = None
        async with aclosing(self._continued(chunk, [], self._params.max_tokens, sources)) as outputs:
            async for output in outputs:
                tokens += output.token_ids
                reason = output.finish_reason
        return tokens, reason


WRITERS: dict[str, type[StrideWriter]] = {
    "iterative": FixedStrides,
    "flare": Sentences,
    "iter-retgen": WholeAnswers,
}
