"""From an example to what the model reads: an official prompt set, or the layout of the service.

`gpt4` and `yarn` format the benchmark's own template, cut the middle of the whole formatted prompt in tokens,
and decode and tokenise again, as the official script does. `layout` gives the context as a document and the
question as a question, in the form the model was made for, and cuts the middle of the document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import yaml

from eval.errors import EvalError
from eval.tasks.example import Example
from service.answering.passages import Passage
from service.answering.prompting.layouts import Prompt as LayoutPrompt
from service.answering.prompting.layouts import PromptLayout

PROMPT_SETS = ("gpt4", "yarn")
Message = dict[str, str]


def as_it_is(ids: Sequence[int], text: str) -> str:
    """The prediction is the generated text."""
    return text


@dataclass(frozen=True)
class ModelInput:
    """What an engine is given.

    Attributes:
        ids: token ids, for engines in this process.
        text: the prompt as running text, for endpoints that complete.
        messages: the prompt as a conversation, for endpoints that chat; () for completion style.
        documents: token ids of texts that the prompt lacks and the answer may repeat, for drafters.
        cut_tokens: how many tokens the truncation took out of the middle.
        read: turns generated ids and text into the prediction.
    """

    ids: tuple[int, ...]
    text: str
    messages: tuple[Message, ...] = ()
    documents: tuple[tuple[int, ...], ...] = ()
    cut_tokens: int = 0
    read: Callable[[Sequence[int], str], str] = as_it_is


class Prompter(Protocol):
    """Turns examples into model inputs; `name` goes into the results."""

    name: str

    def build(self, example: Example, limit: int) -> ModelInput:
        """The prompt, its middle cut where it is longer than `limit` tokens."""
        ...

    def count(self, example: Example) -> int:
        """Tokens of the whole prompt, nothing cut."""
        ...


class OfficialPrompter:
    """InfiniteBench's prompt set `gpt4` (chat) or `yarn` (completion), and the templates of the other tasks."""

    def __init__(self, tokenizer: Any, prompt_set: str) -> None:
        if prompt_set not in PROMPT_SETS:
            raise EvalError(f"unknown prompt set {prompt_set!r}", hint=f"Choose {' or '.join(PROMPT_SETS)}.")
        self.name = prompt_set
        self.tokenizer = tokenizer

    def count(self, example: Example) -> int:
        return len(self._input(example, official_text(example, self.name)).ids)

    def build(self, example: Example, limit: int) -> ModelInput:
        text = official_text(example, self.name)
        made = self._input(example, text)
        whole = self.tokenizer.encode(text)
        budget = min(len(whole), limit)
        while len(made.ids) > limit:
            kept = truncate_middle(whole, budget, self.name)
            cut_text = self.tokenizer.decode(kept, skip_special_tokens=True)
            made = self._input(example, cut_text, len(whole) - len(kept))
            # The chat template, and tokenising again, may have added tokens: cut as many more.
            budget -= max(1, len(made.ids) - limit)
            if budget < 2:
                raise EvalError(f"{limit} tokens leave no room for the prompt", hint="Raise --length.")
        return made

    def _input(self, example: Example, text: str, cut: int = 0) -> ModelInput:
        messages = self._messages(example, text)
        special = True
        if messages and getattr(self.tokenizer, "chat_template", None):
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            special = False
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=special))
        return ModelInput(ids, text, messages, (), cut)

    def _messages(self, example: Example, text: str) -> tuple[Message, ...]:
        if self.name != "gpt4":
            return ()
        if example.base_task == "math_calc":
            return (
                {"role": "system", "content": _templates()["math_calc_system"]},
                {"role": "user", "content": "1 + 2 - 4 - 10"},
                {"role": "system", "content": "[1, 3, -1, -11]"},
                {"role": "user", "content": text},
            )
        return (
            {"role": "system", "content": "You are a helpful assistant"},
            {"role": "user", "content": text},
        )


class LayoutPrompter:
    """The service's own layout: the context is a document, the prediction is what the layout shows of the answer."""

    def __init__(self, tokenizer: Any, layout: PromptLayout) -> None:
        self.name = f"layout:{layout.name}"
        self.tokenizer = tokenizer
        self.layout = layout

    def count(self, example: Example) -> int:
        return len(self._prompt(example, example.context).ids)

    def build(self, example: Example, limit: int) -> ModelInput:
        context = example.context
        prompt = self._prompt(example, context)
        whole = len(prompt.ids)
        while len(prompt.ids) > limit:
            # Characters a token, and a little more, so that few rounds are enough.
            keep = len(context) * (limit - 16) // len(prompt.ids) - 16
            if keep < 2:
                raise EvalError(f"{limit} tokens leave no room for the prompt", hint="Raise --length.")
            context = cut_middle_lines(context, keep)
            prompt = self._prompt(example, context)

        def read(_: Sequence[int], text: str) -> str:
            return self.layout.visible(text).strip()

        return ModelInput(tuple(prompt.ids), self.tokenizer.decode(prompt.ids), (), (), whole - len(prompt.ids), read)

    def _prompt(self, example: Example, context: str) -> LayoutPrompt:
        passage = Passage("context", "context", 0, len(context), None, context)
        return self.layout.build(layout_question(example), [passage])


class OncePrompter:
    """Another prompter that keeps the last prompt: engines that are asked one example in turn read the same one."""

    def __init__(self, prompter: Prompter) -> None:
        self.name = prompter.name
        self.count = prompter.count
        self._build = prompter.build
        self._last: tuple[Example, int, ModelInput] | None = None

    def build(self, example: Example, limit: int) -> ModelInput:
        if self._last is None or self._last[0] is not example or self._last[1] != limit:
            self._last = (example, limit, self._build(example, limit))
        return self._last[2]


def truncate_middle(ids: Sequence[int], limit: int, prompt_set: str) -> list[int]:
    """Drop the middle of `ids`, as the official scripts do; no-op where they are no longer than `limit`.

    The GPT-4 script keeps ``limit`` tokens; the YaRN script halves first and so keeps one less of an odd limit.
    """
    if len(ids) <= limit:
        return list(ids)
    head = limit // 2
    tail = limit - head if prompt_set == "gpt4" else head
    return [*ids[:head], *ids[len(ids) - tail :]]


def cut_middle_lines(text: str, keep: int) -> str:
    """Drop the middle of `text`, `keep` characters staying in all, split between beginning and end."""
    half = keep // 2
    return text[:half] + "\n" + text[len(text) - half :]


def official_text(example: Example, prompt_set: str) -> str:
    """The formatted prompt, whole: InfiniteBench's `create_prompt`, or the template of the other tasks."""
    templates = _templates()
    task = example.base_task
    if task not in templates[prompt_set]:
        return _other_text(example, templates["other"])
    if task == "math_calc" and prompt_set == "gpt4":
        return example.context  # the chat around it asks the question
    fields = {"context": example.context, "input": example.input, "question": example.input}
    if task == "code_run":
        call = re.search(r"func_[0-9]+\(-?[0-9]+\)", example.input)
        if call is None:
            raise EvalError(f"example {example.id} of {example.task} names no function call")
        fields |= {"func_call": call.group(), "func": call.group().split("(")[0]}
    if task == "math_find":
        asked = re.search("The .+ of", example.input)
        if asked is None:
            raise EvalError(f"example {example.id} of {example.task} names no number to find")
        fields["prefix"] = f"What is {asked.group().lower()[:-3]} in the following list?"
    for letter, option in zip("ABCD", example.options, strict=False):
        fields[f"OPTION_{letter}"] = option
    return _fill(templates[prompt_set][task], fields, example)


def layout_question(example: Example) -> str:
    """The question for a model that gets the context as a document."""
    question = example.question or example.input
    if not question:
        question = {
            "longbook_sum_eng": "What is this book about?",
            "math_calc": "What are the intermediate values of the expression?",
            "longdialogue_qa_eng": "Which character is $$MASK$$?",
        }.get(example.base_task, "")
    options = "".join(f" {letter}. {text}" for letter, text in zip("ABCD", example.options, strict=False))
    return (question.strip() + options).strip()


def _other_text(example: Example, templates: dict[str, str]) -> str:
    if example.task not in templates:
        raise EvalError(f"task {example.task!r} has no prompt template", hint="Ask it with --prompt layout.")
    fields = {"context": example.context, "input": example.input}
    for letter, option in zip("ABCD", example.options, strict=False):
        fields[f"OPTION_{letter}"] = option
    return _fill(templates[example.task], fields, example)


def _fill(template: str, fields: dict[str, str], example: Example) -> str:
    try:
        return template.format(**fields)
    except KeyError as error:
        raise EvalError(f"example {example.id} of {example.task} lacks {error.args[0]}") from error


@cache
def _templates() -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parents[1] / "tasks" / "prompts.yaml").read_text(encoding="utf-8"))
