"""How the embedded reader is asked, and what of its answer is shown.

A prompt of the reader is: ``<|bos|><|none|> The documents do not say.<|end|>``, then every sentence of the
evidence as ``<|r…|> words<|end|>``, then ``<|question|> …<|answer|>``. The reader answers with one reference
token and that sentence, word for word, then ``<|end|>``. Where the sentence stands is found as for any model
(`service.answering.support.judge`): the reference is not trusted.

Which sentence that is, is chosen before (`service.reader.choosing`), where there is a ranker: the model is then made to
say it (`Prompt.answer`), so that it can neither choose a wrong one nor change a word. Left alone, it chooses itself:
a constraint on the output leaves it alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from retrieval.ranking.ranker import FOUND_CHARS, READ_CHARS
from service.answering.passages import Passage, canonical
from service.answering.prompting.layouts import Prompt, ReadingLimits
from service.errors import InvalidRequest
from service.reader.choosing import SentenceChooser
from service.reader.contexts import contexts
from service.reader.sentences import LONGEST, LONGEST_QUOTED, Sentence, split
from service.reader.tables import columns_of
from service.reader.tokenizer import ANSWER, BOS, END, NONE, NOT_STATED, QUESTION, REFERENCES, reference

_SPECIAL = re.compile(r"<\|(?:bos|end|none|question|answer|r\d{1,4})\|>")


_ENDED = re.compile(r"[.!?…。！？\"'”’»)]$")
"""A further sentence goes on behind a sentence that has ended; behind anything else, a row say, it has a line of its
own."""


@dataclass(frozen=True, slots=True)
class Quotable:
    """One sentence of a prompt.

    Attributes:
        passage: index into `Prompt.passages`.
        sentence: offsets relative to that passage's text.
        tokens: ids of its words.
    """

    passage: int
    sentence: Sentence
    tokens: tuple[int, ...]


class ReaderLayout:
    """Sentences behind reference tokens, the question last; answers are one sentence, quoted."""

    name = "reader"
    follows = False
    instructed = False
    limits: ReadingLimits | None = ReadingLimits(long_tokens=16_384, passages=None)

    def __init__(self, tokenizer: Any, chooser: Callable[[], SentenceChooser] | None = None) -> None:
        """chooser: called when the first answer is chosen; None leaves the choice to the model."""
        self.tokenizer = tokenizer
        self._chooser = chooser
        self.quotes = chooser is not None
        ids = tokenizer.convert_tokens_to_ids
        self._bos, self._end, self._none = ids(BOS), ids(END), ids(NONE)
        self._question, self._answer = ids(QUESTION), ids(ANSWER)
        self._references = [ids(reference(i)) for i in range(REFERENCES)]
        if tokenizer.unk_token_id in self._references or None in self._references:
            raise InvalidRequest("This tokenizer has no reference tokens: it is not the embedded reader's.")
        self._preamble = [self._bos, self._none, *self._encode([f" {NOT_STATED}"])[0], self._end]
        self._read = lru_cache(maxsize=64)(self._split)

    def build(
        self,
        question: str,
        passages: Sequence[Passage],
        history: Sequence[Mapping[str, str]] = (),
        likely: Sequence[str] = (),
        instructions: str = "",
    ) -> Prompt:
        """Ids for `question` over `passages`; `context` of the prompt lists its sentences in order.

        Raises InvalidRequest for an empty question, and for earlier turns: the reader was trained on none.
        """
        if history:
            raise InvalidRequest(
                "The embedded reader answers single questions and cannot follow a conversation.",
                hint="Ask one complete question, or choose a chat model with FOLIO_MODEL.",
                param="history",
            )
        if not question.strip():
            raise InvalidRequest("The question is empty.", param="question")
        ordered = tuple(canonical(passages))
        prompt = self._prompt(question, ordered, self._quotable(ordered, LONGEST))
        chooser = self._chooser
        if chooser is None:
            return prompt
        return replace(prompt, settle=lambda narrow: self._settled(prompt, passages, chooser(), narrow))

    def _quotable(self, passages: Sequence[Passage], longest: int) -> tuple[Quotable, ...]:
        return tuple(
            Quotable(n, *one) for n, passage in enumerate(passages) for one in self._read(passage.text, longest)
        )

    def _prompt(self, question: str, passages: tuple[Passage, ...], quotable: tuple[Quotable, ...]) -> Prompt:
        ids = list(self._preamble)
        for number, one in enumerate(quotable):
            ids += [self._references[number % REFERENCES], *one.tokens, self._end]
        ids += [self._question, *self._encode([" " + " ".join(question.split())])[0], self._answer]
        return Prompt(ids, question, passages, quotable)

    def _settled(self, prompt: Prompt, found: Sequence[Passage], chooser: SentenceChooser, narrow: bool) -> Prompt:
        """The prompt with the sentences that answer it, a row under its names of columns, or the refusal.

        found: the passages as they were given; narrow: over the likely sentences alone.
        """
        quotable = self._quotable(prompt.passages, LONGEST_QUOTED)
        places = [(prompt.passages[one.passage], one.sentence) for one in quotable]
        read, columns = contexts(places, found), columns_of(places)
        sentences = [one.sentence.words for one in quotable]
        room = FOUND_CHARS if narrow else READ_CHARS
        choice = chooser.choose(prompt.question, sentences, read, set(columns.values()), room)
        told = {number for one in choice.sentences for number in (columns.get(one, one), one)}
        chosen = [quotable[number] for number in sorted(told)]
        if narrow:
            quotable = tuple(quotable[number] for number in sorted(told.union(choice.likely)))
            prompt = self._prompt(prompt.question, prompt.passages, quotable)
        answer = [] if chosen else [self._none, *self._encode([f" {NOT_STATED}"])[0]]
        for before, one in zip([None, *chosen], chosen, strict=False):
            if before is not None and not _ENDED.search(before.sentence.words):
                answer += self._encode(["\n"])[0]
            answer += [self._references[quotable.index(one) % REFERENCES], *one.tokens]
        return replace(prompt, answer=(*answer, self._end), context=quotable, settle=None)

    def visible(self, answer_text: str) -> str:
        """The answer without reference tokens."""
        return _SPECIAL.sub("", answer_text).replace("\n ", "\n").lstrip()

    def _split(self, text: str, longest: int) -> list[tuple[Sentence, tuple[int, ...]]]:
        sentences = split(text, longest)
        tokens = self._encode([" " + s.words for s in sentences]) if sentences else []
        return [(sentence, tuple(ids)) for sentence, ids in zip(sentences, tokens, strict=True)]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
