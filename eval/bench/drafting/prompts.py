"""Prompts of the drafters' benchmark: answers that quote, answers in between, and answers with nothing to copy.

Whether an answer quotes is the model's doing, not the question's. Two workloads therefore choose among more prompts
than they keep, by the model's own plain, greedy answers: `quoting` those that repeat the text, `nothing` those that do
not. `questions` are those that `quoting` chooses from, as they come. Spec-Bench's groups are asked as chat messages.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from eval.bench.drafting.turns import first_turns
from eval.errors import EvalError
from eval.tasks.quoting import QuoteMaker, read_folder
from service.answering.passages import Passage
from service.answering.prompting.layouts import PromptLayout
from service.engine.async_engine import AsyncEngine
from service.engine.params import SamplingParams
from service.models import layout_for

GROUPS = {
    "chat": ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"),
    "translation": ("translation",),
    "summarization": ("summarization",),
    "qa": ("qa",),
    "math_reasoning": ("math_reasoning",),
    "rag": ("rag",),
}
"""Spec-Bench's six groups of tasks, by its categories."""

WORKLOADS = ("quoting", "spec_bench", "nothing", "questions", *GROUPS)
CATEGORY = "category:"
"""Before the name of any one category that the file of prompts has: SPEED-Bench's are others than Spec-Bench's."""
_OVER_TEXT = ("quoting", "questions")
ANSWERED = (*_OVER_TEXT, *GROUPS)  # whose answers end by themselves
_SPEC_BENCH = ("rag", "summarization")
_QUESTIONS, _RANDOM = 3, 6  # prompts tried for each one kept of `quoting` and of `nothing`


@dataclass(frozen=True)
class Prompts:
    """Token ids of prompts that share all but their ends, and of how many they were chosen (0: they were not)."""

    ids: list[list[int]]
    chosen_from: int = 0


def make_prompts(engine: AsyncEngine, workload: str, context: int, count: int, text: Path, spec_bench: Path) -> Prompts:
    """`count` prompts of about `context` tokens."""
    if workload in _OVER_TEXT:
        loaded = engine.engine.loaded
        layout = layout_for(loaded.name, loaded.tokenizer, parameters=loaded.num_parameters)
        if workload == "questions":
            return Prompts(questions(layout, context, count, text))
        asked = questions(layout, context, _QUESTIONS * count, text)
        return _choose(engine, asked, count, 64, False, quoted)
    if workload == "spec_bench":
        return Prompts(_spec_bench(engine, context, count, spec_bench))
    if workload == "nothing":
        return _choose(engine, _random(engine, context, _RANDOM * count), count, 32, True, _uncopied)
    if workload in GROUPS:
        return Prompts(_of_categories(engine, GROUPS[workload], context, count, spec_bench))
    if workload.startswith(CATEGORY):
        return Prompts(_of_categories(engine, (workload.removeprefix(CATEGORY),), context, count, spec_bench))
    raise EvalError(f"unknown workload {workload!r}", hint=f"Choose from {', '.join(WORKLOADS)}, {CATEGORY}NAME.")


def _choose(
    engine: AsyncEngine,
    asked: list[list[int]],
    count: int,
    max_tokens: int,
    ignore_eos: bool,
    score: Callable[[Sequence[int], Sequence[int]], float],
) -> Prompts:
    """The `count` prompts whose plain answers score highest, in their order."""
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos, drafter="none")
    answers = engine.generate(asked[:1], params) + engine.generate(asked[1:], params)
    scores = [score(ids, answer.token_ids) for ids, answer in zip(asked, answers, strict=True)]
    best = sorted(range(len(asked)), key=lambda i: -scores[i])[:count]
    return Prompts([asked[i] for i in sorted(best)], len(asked))


def quoted(prompt: Sequence[int], answer: Sequence[int]) -> float:
    """The share of the answer that is one passage of the prompt, word for word."""
    text, said = "".join(map(chr, prompt)), "".join(map(chr, answer))
    longest = 0
    for start in range(len(said)):
        while start + longest < len(said) and said[start : start + longest + 1] in text:
            longest += 1
    return longest / max(len(said), 1)


def questions(layout: PromptLayout, context: int, count: int, text: Path) -> list[list[int]]:
    """`count` questions about sentences from the text's beginning to its end, fewer where some are the same."""
    maker = QuoteMaker(read_folder(text))

    def prompt(size: int, depth: float) -> list[int]:
        example = maker(random.Random(5), size, depth)
        passage = Passage("context", "context", 0, len(example.context), None, example.context)
        return list(layout.build(example.question or "", [passage]).ids)

    size = max(8, context // 32)
    for _ in range(4):  # sentences differ in length: approach the wanted number of tokens
        size = max(8, size * context // len(prompt(size, 0.5)))
    while len(prompt(size, 0.5)) > context:
        size -= 1
    made = [prompt(size, (i + 0.5) / count) for i in range(count)]
    return [ids for i, ids in enumerate(made) if ids not in made[:i]]


def _of_categories(
    engine: AsyncEngine, categories: Sequence[str], context: int, count: int, path: Path
) -> list[list[int]]:
    """Prompts of some categories, spread over them, each as a user's message behind others up to the length."""
    turns = first_turns(path, categories)
    encoder = engine.engine.tokenizer
    asked = [turns[i * len(turns) // count] for i in range(count)]
    others = "\n\n".join(turn for turn in turns if turn not in asked)
    fill = encoder.encode(others, add_special_tokens=False)
    while len(fill) < context:
        fill += fill

    def message(before: int, turn: str) -> list[int]:
        text = f"{encoder.decode(fill[:before])}\n\n{turn}" if before else turn
        turns = [{"role": "user", "content": text}]
        rendered = encoder.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return encoder.encode(rendered, add_special_tokens=False)  # type: ignore[no-any-return]

    return [message(max(0, context - len(message(0, turn))), turn) for turn in asked]


def _spec_bench(engine: AsyncEngine, context: int, count: int, path: Path) -> list[list[int]]:
    turns = first_turns(path, _SPEC_BENCH)
    encoded = [engine.engine.tokenizer.encode(turn, add_special_tokens=False) for turn in turns]
    asked, fill = encoded[:count], [token for ids in encoded[count:] for token in ids]
    longest = max(map(len, asked))
    while len(fill) < context:
        fill += fill
    return [fill[: max(0, context - longest)] + ids for ids in asked]


def _random(engine: AsyncEngine, context: int, count: int) -> list[list[int]]:
    """Random words; a model soon repeats some."""
    rng = random.Random(7)
    vocab = engine.engine.loaded.vocab_size
    ids = [rng.randrange(vocab) for _ in range(context - 8)]
    return [ids + [rng.randrange(vocab) for _ in range(8)] for _ in range(count)]


def _uncopied(prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Less for every token of the answer that follows the one before it as it did earlier, in prompt or answer."""
    seen = set(pairwise(prompt))
    text = [prompt[-1], *answer]
    found = 0
    for pair in pairwise(text):
        found += pair in seen
        seen.add(pair)
    return -found
