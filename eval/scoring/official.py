"""InfiniteBench's own scorers, with their defects: v1 is the script of commit 88b3daa, v2 its later revision.

Published numbers were made by these rules, so they stay as they are; `fixed.py` holds the repaired ones.
A scorer takes (prediction, label) and returns a value in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from eval.scoring import text

Scorer = Callable[[str, Any], float]

CHOICE_PREFIXES = ("answer is:", "answer:", "answer is", "option is")
DEBUG_PREFIXES = ("answer is:", "is:", "answer:", "correct option is:")
_LAST_CHOICE = re.compile(r"\b[A-D]\b(?!.*\b[A-D]\b)")
_LAST_DEBUG = re.compile(r"\b[A-J]\b(?!.*\b[A-J]\b)")
_NUMBER = re.compile(r"\d+\.\d+|\d+")


def digits(prediction: str, label: Any) -> float:
    """passkey, number_string: the first run of digits equals the label as a string."""
    found = re.search("[0-9]+", prediction)
    return float((found.group() if found else "") == _first(label))


def kv_retrieval(prediction: str, label: Any) -> float:
    """The label is one of the words left after separators become spaces."""
    return float(label in _spaced(prediction, "\n:\"'.,?!{}").split())


def code_run(prediction: str, label: Any) -> float:
    """The last word, read as an integer, is the label."""
    words = _spaced(prediction, "\n.`'\":").split()
    try:
        return float(bool(words) and int(words[-1]) == _first(label))
    except ValueError:
        return 0.0


def math_find(prediction: str, label: Any) -> float:
    """The first number is the label; an integer label asks for a number written as an integer.

    The official script stops with ValueError at "88.5" for an integer label; here that scores 0.
    """
    label = _first(label)
    if isinstance(label, bool) or not isinstance(label, int | float):
        raise TypeError(f"a label of math_find is a number, not {type(label).__name__}")
    found = _NUMBER.search(prediction)
    if found is None:
        return 0.0
    if isinstance(label, int):
        return float("." not in found.group() and int(found.group()) == label)
    return float(float(found.group()) == label)


def math_calc(prediction: str, label: Any, *, first_is_operand: bool = False) -> float:
    """Length of the leading run of correct values over the label's length.

    ``first_is_operand``: the gpt4 prompt shows the first operand as the first value, which labels lack; the
    official script then drops the first predicted number.
    """
    if isinstance(label[0], list):
        label = label[0]
    values = [int(run) for run in re.findall("[0-9]+", prediction)][int(first_is_operand) :]
    return leading_run(values, label) / len(label)


def leading_run(values: Sequence[int], label: Sequence[int]) -> int:
    """How many values are right before the first wrong one."""
    for correct, (value, expected) in enumerate(zip(values, label, strict=False)):
        if value != expected:
            return correct
    return min(len(values), len(label))


def qa_eng(prediction: str, label: Any) -> float:
    """Best word F1 over the labels."""
    words = text.english_words(prediction)
    return max((text.f1(words, text.english_words(reference)) for reference in label), default=0.0)


def qa_chn(prediction: str, label: Any) -> float:
    """Best character F1 over the labels."""
    characters = text.chinese_characters(prediction)
    return max((text.f1(characters, text.chinese_characters(reference)) for reference in label), default=0.0)


def summary(prediction: str, label: Any) -> float:
    """ROUGE-Lsum."""
    return text.rouge_lsum(prediction, label)


def dialogue_v1(prediction: str, label: Any) -> float:
    """The first alias, as it is written, equals one word of the upper-cased prediction."""
    return float(label[0] in _spaced(prediction, "\n:\"'.,?!{}").upper().split())


def dialogue_v2(prediction: str, label: Any) -> float:
    """Any alias occurs in the prediction, case-insensitively (a substring is enough)."""
    return float(any(alias.upper() in prediction.upper() for alias in label))


def choice_v1(prediction: str, label: Any) -> float:
    """Multiple choice: first character, whole text, text after a prefix, first word inside "ABCD"."""
    prediction = prediction.strip()
    if not prediction:
        return 0.0
    if prediction[0] in "ABCD":
        return float(prediction[0] in label)
    if prediction in label:
        return 1.0
    prediction = _single_spaces(_spaced(prediction, "\n\"'.,?!{}"))
    after = _after_prefix(prediction, CHOICE_PREFIXES)
    if after is not None:
        return float(after.startswith(tuple(label)) if after else False)
    # "AB" and "BCD" are substrings of "ABCD" too: kept.
    first = next((word for word in prediction.split() if word in "ABCD"), None)
    return float(first in label)


def choice_v2(prediction: str, label: Any) -> float:
    """v1 after a rule of its own: the last letter A–D that stands alone in the first line that has one."""
    return _last_letter(_LAST_CHOICE, prediction, label) or choice_v1(prediction, label)


def code_debug_v1(prediction: str, label: Any) -> float:
    """The letter with "." or ":" in front, or the letter or the function's name after a prefix."""
    prediction = prediction.strip()
    function, letter = label
    if prediction[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    after = _after_prefix(_debug_text(prediction), DEBUG_PREFIXES)
    return float(bool(after) and str(after).startswith((letter, function)))


def code_debug_v2(prediction: str, label: Any) -> float:
    """The last letter A–J that stands alone in the first line that has one; else the letter or the name in
    front of everything; else v1's prefixes."""
    if _last_letter(_LAST_DEBUG, prediction, label[1:]):
        return 1.0
    if _debug_text(prediction).startswith((label[1], label[0])):
        return 1.0
    return code_debug_v1(prediction, label)


def _debug_text(prediction: str) -> str:
    prediction = prediction.strip()
    for noise in ("\n", "`", "'", '"', "-", "*", "Option", "option"):
        prediction = prediction.replace(noise, " ")
    return _single_spaces(prediction)


def _last_letter(pattern: re.Pattern[str], prediction: str, label: Sequence[str]) -> float:
    found = pattern.search(prediction.strip())
    return float(found is not None and found.group() in label)


def _after_prefix(prediction: str, prefixes: Sequence[str]) -> str | None:
    """What follows the first prefix (in order of the list) and one more character; None without a prefix."""
    for prefix in prefixes:
        start = prediction.find(prefix)
        if start != -1:
            return prediction[start + len(prefix) + 1 :]
    return None


def _first(label: Any) -> Any:
    return label[0] if isinstance(label, list) else label


def _spaced(prediction: str, separators: str) -> str:
    return prediction.strip().translate(str.maketrans(separators, " " * len(separators)))


def _single_spaces(prediction: str) -> str:
    return re.sub(" {2,}", " ", prediction)


SHARED: dict[str, Scorer] = {
    "passkey": digits,
    "number_string": digits,
    "kv_retrieval": kv_retrieval,
    "longbook_sum_eng": summary,
    "longbook_qa_eng": qa_eng,
    "longbook_qa_chn": qa_chn,
    "math_find": math_find,
    "math_calc": math_calc,
    "code_run": code_run,
}
V1: dict[str, Scorer] = SHARED | {
    "longdialogue_qa_eng": dialogue_v1,
    "longbook_choice_eng": choice_v1,
    "code_debug": code_debug_v1,
}
V2: dict[str, Scorer] = SHARED | {
    "longdialogue_qa_eng": dialogue_v2,
    "longbook_choice_eng": choice_v2,
    "code_debug": code_debug_v2,
}
