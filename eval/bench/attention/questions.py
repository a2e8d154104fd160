"""How questions about sentences are put to the embedded reader, and to any other model, and when an answer is right."""

from __future__ import annotations

import re
from typing import Any, Protocol

from eval.reader.data import Example, Question
from eval.reader.packing import Packer
from service.engine.outputs import Generation
from service.reader.tokenizer import REFERENCES

PLANTED = {"passkey": 1, "number": 1, "kv": 3}
"""Tasks whose answer is the last word of a planted statement, with the statements a question: pairs that nobody asks
for distract."""
QUOTE = "quote"
_WORDS_MORE = 16  # tokens that a model may say around an answer


class Asking(Protocol):
    """Puts the questions of a context to a model; `tasks` are those that it can be asked."""

    tasks: tuple[str, ...]

    def length(self, text: str) -> int:
        """Tokens of a sentence in a prompt."""
        ...

    def prompt(self, example: Example, question: Question) -> tuple[list[int], int]:
        """Token ids, the same for all questions of a context but for their end, and the most new tokens."""
        ...

    def judged(self, example: Example, question: Question, reply: Generation) -> tuple[bool, bool]:
        """Whether an answer is right, and whether it is said to the letter."""
        ...


class OfReader:
    """The embedded reader's own form. *Right*: the reference is that of the sentence asked for, or of one with the same
    words; *quoted*: the whole sentence follows."""

    tasks = (*PLANTED, QUOTE)

    def __init__(self, tokenizer: Any) -> None:
        self._packer = Packer(tokenizer)
        self.length = self._packer.length

    def prompt(self, example: Example, question: Question) -> tuple[list[int], int]:
        packer = self._packer
        ids = packer.context(example.sentences, self._references(example))
        return [*ids, packer.question, *packer.encode(question.text), packer.answer], len(self._told(example, question))

    def judged(self, example: Example, question: Question, reply: Generation) -> tuple[bool, bool]:
        said, references = reply.token_ids, self._references(example)
        known = said[0] in references and example.sentences[references.index(said[0])]
        right = known == example.sentences[question.answer]
        return right, right and said[1:] == self._told(example, question)[1:]

    def _references(self, example: Example) -> list[int]:
        return [self._packer.references[i % REFERENCES] for i in range(len(example.sentences))]

    def _told(self, example: Example, question: Question) -> list[int]:
        return self._packer.answer_ids(example, self._references(example), question.answer)


class OfModel:
    """A user's message, in the model's chat template if it has one. *Right* and *quoted* are one: the answer holds the
    value that the statement ends in."""

    tasks = tuple(PLANTED)

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def length(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False)) + 1

    def prompt(self, example: Example, question: Question) -> tuple[list[int], int]:
        text = f"{' '.join(example.sentences)}\n\n{question.text} Answer with that alone."
        if getattr(self._tokenizer, "chat_template", None):
            turns = [{"role": "user", "content": text}]
            made = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ids = self._tokenizer.encode(made, add_special_tokens=False)
        else:
            ids = self._tokenizer.encode(f"{text}\nAnswer:")
        return list(ids), self.length(example.sentences[question.answer]) + _WORDS_MORE

    def judged(self, example: Example, question: Question, reply: Generation) -> tuple[bool, bool]:
        right = value(example.sentences[question.answer]) in reply.text
        return right, right


def value(statement: str) -> str:
    """What a planted statement tells: its last word."""
    return re.findall(r"[\w-]+", statement)[-1]
