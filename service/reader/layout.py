"""How the embedded reader is asked, and what of its answer is shown.

A prompt of the reader is: ``<|bos|><|none|> The documents do not say.<|end|>``, then every sentence of the
evidence as ``<|r…|> words<|end|>``, then ``<|question|> …<|answer|>``. The reader answers with one reference
token and that sentence, word for word, then ``<|end|>``. Where the sentence stands is found as for any model
(`service.answering.support`): the reference is not trusted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from service.answering.passages import Passage, canonical
from service.answering.prompting import Prompt, ReadingLimits
from service.errors import InvalidRequest
from service.reader.sentences import Sentence, split
from service.reader.tokenizer import ANSWER, BOS, END, NONE, NOT_STATED, QUESTION, REFERENCES, reference

_SPECIAL = re.compile(r"<\|(?:bos|end|none|question|answer|r\d{1,4})\|>")


@dataclass(frozen=True, slots=True)
class Quotable:
    """One sentence of a prompt.

    Attributes:
        passage: index into `Prompt.passages`.
        sentence: offsets relative to that passage's text.
    """

    passage: int
    sentence: Sentence


class ReaderLayout:
    """Sentences behind reference tokens, the question last; answers are one sentence, quoted."""

    name = "reader"
    follows = False
    limits: ReadingLimits | None = ReadingLimits(long_tokens=16_384, passages=None)

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        ids = tokenizer.convert_tokens_to_ids
        self._bos, self._end, self._none = ids(BOS), ids(END), ids(NONE)
        self._question, self._answer = ids(QUESTION), ids(ANSWER)
        self._references = [ids(reference(i)) for i in range(REFERENCES)]
        self._numbers = {token: i for i, token in enumerate(self._references)}
        if tokenizer.unk_token_id in self._references or None in self._references:
            raise InvalidRequest("This tokenizer has no reference tokens: it is not the embedded reader's.")
        self._preamble = [self._bos, self._none, *self._encode([f" {NOT_STATED}"])[0], self._end]
        self._passage = lru_cache(maxsize=64)(self._read)

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
        ordered = canonical(passages)
        ids = list(self._preamble)
        quotable: list[Quotable] = []
        for number, passage in enumerate(ordered):
            for sentence, tokens in self._passage(passage.text):
                ids += [self._references[len(quotable) % REFERENCES], *tokens, self._end]
                quotable.append(Quotable(number, sentence))
        ids += [self._question, *self._encode([" " + " ".join(question.split())])[0], self._answer]
        return Prompt(ids, question, tuple(ordered), tuple(quotable))

    def visible(self, answer_text: str) -> str:
        """The answer without reference tokens."""
        return _SPECIAL.sub("", answer_text).lstrip()

    def _read(self, text: str) -> list[tuple[Sentence, list[int]]]:
        sentences = split(text)
        tokens = self._encode([" " + s.words for s in sentences]) if sentences else []
        return list(zip(sentences, tokens, strict=True))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
