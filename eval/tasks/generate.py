"""Generated tasks by name, at a length counted with the tokenizer of the model under test."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Protocol

from eval.errors import EvalError
from eval.harness.prompting import Prompter
from eval.tasks import associations, babilong_style, coreference, infinitebench, infinitebench_style, ruler_style
from eval.tasks.example import Example

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LARGEST = 1 << 22
FIRST_GUESS, MOST_GUESSES, FARTHEST = 16, 8, 32  # of `largest_fitting`: the farthest guess is so many times what fits


class Maker(Protocol):
    """Makes one example from a seeded generator, a size (units of filler) and a depth in [0, 1]."""

    def __call__(self, rng: random.Random, size: int, depth: float) -> Example: ...


MAKERS: dict[str, Maker] = {
    "passkey-style": infinitebench_style.passkey,
    "number_string-style": infinitebench_style.number_string,
    "kv_retrieval-style": infinitebench_style.kv_retrieval,
    "math_find-style": infinitebench_style.math_find,
    "math_calc-style": infinitebench_style.math_calc,
    "code_run-style": infinitebench_style.code_run,
    "niah_single_1-style": ruler_style.niah_single_1,
    "niah_single_2-style": ruler_style.niah_single_2,
    "niah_single_3-style": ruler_style.niah_single_3,
    "niah_multikey-style": ruler_style.niah_multikey,
    "niah_multikey_2-style": ruler_style.niah_multikey_2,
    "niah_multikey_3-style": ruler_style.niah_multikey_3,
    "niah_multivalue-style": ruler_style.niah_multivalue,
    "niah_multiquery-style": ruler_style.niah_multiquery,
    "vt-style": ruler_style.vt,
    "cwe-style": ruler_style.cwe,
    "fwe-style": ruler_style.fwe,
    **babilong_style.MAKERS,
    "association-style": associations.association,
    "coreference-style": coreference.coreference,
}
# RULER's own budgets for its tasks; one word of BABILong's and NoLiMa's kind, in a sentence.
_NEW_TOKENS = {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 64, "association": 24} | {
    name.removesuffix("-style"): 24 for name in babilong_style.MAKERS
}
# Kinds of question that `depth` chooses among, where the task has no depth.
_STEPS = {"math_find-style": len(infinitebench.MATH_FIND_KINDS), "code_run-style": len(infinitebench.CODE_RUN_CALLS)}


def max_new_tokens(task: str) -> int:
    """Tokens that an answer of a generated task may have: InfiniteBench's, RULER's, or a long sentence's."""
    base = task.removesuffix("-style")
    if task == "quote":
        return 96
    return infinitebench.MAX_NEW_TOKENS.get(base) or _NEW_TOKENS.get(base, 128)


def depth_of(task: str, index: int) -> float:
    """Depth of the index-th example: every depth (or kind of question) in turn."""
    if task in _STEPS:
        return (index % _STEPS[task] + 0.5) / _STEPS[task]
    return DEPTHS[index % len(DEPTHS)]


def generate(
    task: str, maker: Maker, prompter: Prompter, *, length: int, new_tokens: int, count: int, seed: int
) -> Iterator[Example]:
    """Yield `count` examples whose prompt and answer together have at most `length` tokens, and nearly as many.

    An example depends on (task, length, seed, index) and the tokenizer alone, not on the examples before it.

    Raises:
        EvalError: not even the smallest example fits.
    """
    size = 0
    for index in range(count):
        make = _seeded(task, maker, length, seed, index)
        tokens = cache(partial(_tokens, prompter, make, new_tokens))
        if index == 0:
            size = largest_fitting(tokens, length, task)
        fitting = refit(tokens, length, size, task)
        yield replace(make(fitting), id=index)


def _seeded(task: str, maker: Maker, length: int, seed: int, index: int) -> Callable[[int], Example]:
    return lambda size: maker(random.Random(f"{task}:{length}:{seed}:{index}"), size, depth_of(task, index))


def _tokens(prompter: Prompter, make: Callable[[int], Example], new_tokens: int, size: int) -> int:
    return prompter.count(make(size)) + new_tokens


def largest_fitting(tokens: Callable[[int], int], length: int, task: str) -> int:
    """The largest size whose `tokens(size)` is at most `length`, for counts that grow about evenly with the size.

    The line through two counts says what to try next, and the middle does where that does not lead on soon: to count
    is to make and tokenise a whole example.
    """
    low, count = 1, tokens(1)
    if count > length:
        raise EvalError(f"the smallest example of {task} has {count} tokens, not {length}", hint="Raise --length.")
    high, guess, tries = LARGEST, FIRST_GUESS, 0
    while high - low > 1:
        found, tries = _count(tokens, guess), tries + 1
        a_unit = (found - count) / (guess - low) if found is not None else 0.0
        if found is not None and found <= length:
            low, count = guess, found
        else:
            high = guess
        ahead = a_unit > 0 and tries <= MOST_GUESSES
        guess = low + int((length - count) / a_unit) if ahead else (low + high) // 2
        guess = min(max(guess, low + 1), high - 1, FARTHEST * low)
    return low


def refit(tokens: Callable[[int], int], length: int, start: int, task: str) -> int:
    """A size that fits and wastes little, found from a neighbour's size in a few counts."""
    low, high, size = 0, LARGEST, start
    while True:
        count = tokens(size)
        if count <= length:
            low = size
            if length - count <= length // 200:
                return low
        else:
            high = size
        if high - low <= 1:
            break
        size = min(max(size * length // count, low + 1), high - 1)
    if low == 0:
        raise EvalError(f"no example of {task} fits {length} tokens", hint="Raise --length.")
    return low


def _count(tokens: Callable[[int], int], size: int) -> int | None:
    """Tokens of an example of that size; None where the text runs out."""
    try:
        return tokens(size)
    except EvalError:
        return None
