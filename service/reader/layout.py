"""How the embedded reader is asked, and how its answer is read.

A prompt of the reader is: ``<|bos|><|none|> The documents do not say.<|end|>``, then every sentence of the
evidence as ``<|r…|> words<|end|>``, then ``<|question|> …<|answer|>``. The reader answers with one reference
token and that sentence, word for word, then ``<|end|>``. The reference is the citation; the copied words
decide which part of the sentence is cited, and which sentence, should a prompt hold more sentences than there
are reference tokens.

Which sentence that is, is chosen before (`service.reader.choosing`), where there is a ranker: the model is then made to
say it (`Prompt.answer`), so that it can neither choose a wrong one nor change a word. Left alone, it chooses itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import groupby
from typing import Any

from service.answering.passages import Passage, Span, canonical
from service.answering.prompting import Prompt, ReadingLimits
from service.errors import InvalidRequest
from service.reader.choosing import SentenceChooser
from service.reader.sentences import LONGEST, LONGEST_QUOTED, Sentence, split
from service.reader.tokenizer import ANSWER, BOS, END, NONE, NOT_STATED, QUESTION, REFERENCES, reference

_SPECIAL = re.compile(r"<\|(?:bos|end|none|question|answer|r\d{1,4})\|>")
_SHORTEST = 12
"""Characters of the shortest fragment of a garbled quotation that is still taken for one."""


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
    limits: ReadingLimits | None = ReadingLimits(long_tokens=16_384, passages=None)

    def __init__(self, tokenizer: Any, chooser: Callable[[], SentenceChooser] | None = None) -> None:
        """chooser: called when the first answer is chosen; None leaves the choice to the model."""
        self.tokenizer = tokenizer
        self._chooser = chooser
        ids = tokenizer.convert_tokens_to_ids
        self._bos, self._end, self._none = ids(BOS), ids(END), ids(NONE)
        self._question, self._answer = ids(QUESTION), ids(ANSWER)
        self._references = [ids(reference(i)) for i in range(REFERENCES)]
        self._numbers = {token: i for i, token in enumerate(self._references)}
        if tokenizer.unk_token_id in self._references or None in self._references:
            raise InvalidRequest("This tokenizer has no reference tokens: it is not the embedded reader's.")
        self._preamble = [self._bos, self._none, *self._encode([f" {NOT_STATED}"])[0], self._end]
        self._read = lru_cache(maxsize=64)(self._split)

    def build(self, question: str, passages: Sequence[Passage], history: Sequence[Mapping[str, str]] = ()) -> Prompt:
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
        return replace(prompt, settle=lambda narrow: self._settled(prompt, chooser(), narrow))

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

    def _settled(self, prompt: Prompt, chooser: SentenceChooser, narrow: bool) -> Prompt:
        """The prompt with the sentences that answer it, or the refusal; `narrow`: over the likely sentences alone."""
        quotable = self._quotable(prompt.passages, LONGEST_QUOTED)
        passages = [[q.sentence.words for q in group] for _, group in groupby(quotable, key=lambda q: q.passage)]
        choice = chooser.choose(prompt.question, passages)
        chosen = [quotable[number] for number in choice.sentences]
        if narrow:
            quotable = tuple(quotable[number] for number in choice.likely)
            prompt = self._prompt(prompt.question, prompt.passages, quotable)
        answer = [] if chosen else [self._none, *self._encode([f" {NOT_STATED}"])[0]]
        for one in chosen:
            answer += [self._references[quotable.index(one) % REFERENCES], *one.tokens]
        return replace(prompt, answer=(*answer, self._end), context=quotable, settle=None)

    def visible(self, answer_text: str) -> str:
        """The answer without reference tokens."""
        return _SPECIAL.sub("", answer_text).lstrip()

    def citations(self, prompt: Prompt, answer_ids: Sequence[int], answer_text: str) -> tuple[str, list[Span]]:
        """The quoted sentence and where it stands; no span for "not stated" or for what is no quotation."""
        shown = self.visible(answer_text).rstrip()
        spans: list[Span] = []
        cursor = 0
        for token, copied in self._segments(answer_ids):
            printed = self.visible(copied)  # evidence may hold the text of a special token
            begin = shown.find(printed, cursor)
            if not printed or begin < 0:
                continue
            cursor = begin + len(printed)
            if token == self._none:
                continue
            span = self._locate(prompt, token, copied, begin)
            if span is not None and span not in spans:
                spans.append(replace(span, answer_end=min(span.answer_end, cursor)))
        return shown, spans

    def _split(self, text: str, longest: int) -> list[tuple[Sentence, tuple[int, ...]]]:
        sentences = split(text, longest)
        tokens = self._encode([" " + s.words for s in sentences]) if sentences else []
        return [(sentence, tuple(ids)) for sentence, ids in zip(sentences, tokens, strict=True)]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _segments(self, answer_ids: Sequence[int]) -> list[tuple[int | None, str]]:
        """(reference token or None, the words behind it on one line) of an answer, in order."""
        parts: list[tuple[int | None, list[int]]] = [(None, [])]
        for token in map(int, answer_ids):
            if token in self._numbers or token == self._none:
                parts.append((token, []))
            elif token in (self._end, self._bos, self._question, self._answer):
                parts.append((None, []))
            else:
                parts[-1][1].append(token)
        return [(token, " ".join(self.tokenizer.decode(ids).split())) for token, ids in parts if ids]

    def _locate(self, prompt: Prompt, token: int | None, copied: str, begin: int) -> Span | None:
        quotable: Sequence[Quotable] = prompt.context or ()
        named = [] if token is None else quotable[self._numbers[token] :: REFERENCES]
        whole = [q for q in named if q.sentence.words == copied]
        whole = whole or [q for q in quotable if q.sentence.words == copied]
        if whole:
            return _span(prompt, whole[0], 0, len(copied), begin)
        found = [(_common(copied, q.sentence.words), q) for q in named]
        if not found:
            return None
        match, best = max(found, key=lambda pair: pair[0].size)
        if match.size < min(_SHORTEST, len(copied)):
            return None
        return _span(prompt, best, match.b, match.size, begin + match.a)


def _common(copied: str, words: str) -> Any:
    """The longest run that both texts share, without white space at its ends."""
    match = SequenceMatcher(None, copied, words, autojunk=False).find_longest_match()
    shared = copied[match.a : match.a + match.size]
    lead = len(shared) - len(shared.lstrip())
    return match._replace(a=match.a + lead, b=match.b + lead, size=len(shared.strip()))


def _span(prompt: Prompt, quotable: Quotable, start: int, size: int, begin: int) -> Span:
    passage = prompt.passages[quotable.passage]
    first, last = quotable.sentence.span(start, start + size)
    return Span(
        document=passage.document,
        start=passage.start + first,
        end=passage.start + last,
        page=passage.page,
        cited_text=passage.text[first:last],
        quoted=True,
        answer_start=begin,
        answer_end=begin + size,
        label=quotable.passage + 1,
    )
