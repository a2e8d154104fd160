"""Tasks in the manner of InfiniteBench at any size: made from a seed, never passed off as the originals.

Each maker takes a seeded `random.Random`, a size (how many units of filler) and a depth in [0, 1], and
returns an `Example` whose token length grows with the size.
"""

from __future__ import annotations

import random
import statistics
import uuid

from eval.tasks.example import Example
from eval.tasks.infinitebench import CODE_RUN_CALLS, MATH_FIND_KINDS

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"


def passkey(rng: random.Random, size: int, depth: float) -> Example:
    """Five digits, said twice in one place of repeated noise."""
    key = "".join(rng.choices("0123456789", k=5))
    needle = f"The pass key is {key}. Remember it. {key} is the pass key.\n"
    return Example(
        "", "passkey-style", _hidden(needle, size, depth), "What is the pass key?", key, groups={"depth": depth}
    )


def number_string(rng: random.Random, size: int, depth: float) -> Example:
    """Ten digits with repetitions: five, and five times a copy put next to one of those there."""
    digits = rng.choices("0123456789", k=5)
    for _ in range(5):
        at = rng.randrange(len(digits))
        digits.insert(at, digits[at])
    key = "".join(digits)
    needle = f"The sequence of digits is {key}. Remember it. {key} is the sequence of digits.\n"
    context = _hidden(needle, size, depth)
    return Example("", "number_string-style", context, "What is the sequence of digits?", key, groups={"depth": depth})


def kv_retrieval(rng: random.Random, size: int, depth: float) -> Example:
    """One value out of shuffled pairs of UUIDs."""
    pairs = kv_pairs(rng, max(1, size))
    key, value = pairs[min(int(depth * len(pairs)), len(pairs) - 1)]
    context = "JSON data:\n{" + ", ".join(f'"{k}": "{v}"' for k, v in pairs) + "}"
    asked = f'\nKey: "{key}"\nThe value associated with the specified key is: '
    question = f'What is the value of the key "{key}"?'
    return Example("", "kv_retrieval-style", context, asked, value, (), question, {"depth": depth})


def kv_pairs(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Keys and values, all UUIDs."""
    return [(_uuid(rng), _uuid(rng)) for _ in range(count)]


def math_find(rng: random.Random, size: int, depth: float) -> Example:
    """The largest, k-th largest, smallest, k-th smallest (of distinct values) or median of integers 0 to 99.

    `depth` chooses among the seven questions. As in the original, the range is narrowed at the end that is
    asked for, so that the answer is not always 99 or 0.
    """
    kind = MATH_FIND_KINDS[min(int(depth * len(MATH_FIND_KINDS)), len(MATH_FIND_KINDS) - 1)]
    low, high = 0, 99
    if "largest" in kind or (kind == "median" and rng.random() <= 0.5):
        high = rng.randint(79, 99)
    else:
        low = rng.randint(0, 19)
    numbers = [rng.randint(low, high) for _ in range(max(3, size))]
    numbers[:3] = rng.sample(range(low, high + 1), 3)  # three distinct values at least
    distinct = sorted(set(numbers), reverse="largest" in kind)
    rank = {"second": 1, "third": 2}.get(kind.split()[0], 0)
    answer = _median(numbers) if kind == "median" else distinct[rank]
    asked = f"You should answer with only one number, no other words. The {kind} of the list is: "
    return Example("", "math_find-style", str(numbers), asked, answer, groups={"kind": kind})


def math_calc(rng: random.Random, size: int, depth: float) -> Example:
    """A sum of signed integers whose running total stays between 0 and 99; the label lacks the first operand."""
    total = rng.randint(0, 99)
    terms, totals = [str(total)], []
    for _ in range(max(1, size)):
        step = rng.randint(0, 99)
        if rng.random() > 0.5:
            step = step if total + step <= 99 else rng.randint(0, 99 - total)
            terms.append(f"+ {step}")
            total += step
        else:
            step = step if total - step >= 0 else rng.randint(0, total)
            terms.append(f"- {step}")
            total -= step
        totals.append(total)
    asked = "The value of the numerical expression is: "
    return Example("", "math_calc-style", " ".join(terms), asked, totals)


def code_run(rng: random.Random, size: int, depth: float) -> Example:
    """The value of a chain of calls, 2 to 10 layers deep (`depth` chooses), each adding a constant."""
    layers = CODE_RUN_CALLS[min(int(depth * len(CODE_RUN_CALLS)), len(CODE_RUN_CALLS) - 1)]
    width = max(1, size // layers)
    names = rng.sample(range(1, 2 * layers * width + 1), layers * width)
    table = [names[layer * width : (layer + 1) * width] for layer in range(layers)]
    constant = {name: rng.randint(-12, 17) for name in names}
    callee = {name: rng.choice(table[layer + 1]) for layer in range(layers - 1) for name in table[layer]}
    start, argument = rng.choice(table[0]), rng.randint(-10, 10)
    value, called = argument, start
    while True:
        value += constant[called]
        if called not in callee:
            break
        called = callee[called]
    body = "\n".join(_function(name, callee.get(name), constant[name]) for name in sorted(names))
    context = f"\nHere is the content of functions_module.py:\n\n{body}"
    asked = (
        f"Please give me the exact number of the return value of func_{start}({argument}). "
        "Your response should end with the sentence 'The return value is:'."
    )
    return Example("", "code_run-style", context, asked, value, groups={"calls": layers})


def _hidden(needle: str, size: int, depth: float) -> str:
    before = round(depth * size)
    return NOISE * before + needle + NOISE * (size - before)


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _median(numbers: list[int]) -> int | float:
    middle = statistics.median(numbers)
    return int(middle) if len(numbers) % 2 else float(middle)


def _function(name: int, callee: int | None, constant: int) -> str:
    inner = "x" if callee is None else f"func_{callee}(x)"
    sign = f" {'+' if constant > 0 else '-'} {abs(constant)}" if constant else ""
    return f"def func_{name}(x):\n    return {inner}{sign}\n"
