"""Scorers without the official script's known defects: not comparable with published numbers.

What differs from `official.py`: "According to … C" is C, ``(B)`` and ``**B**`` are B; a dialogue's label
matches by any alias, as whole words, whatever its case or punctuation; math_calc forgives a repeated first
operand under every prompt; digits, keys and integers are found behind Markdown marks; numbers compare as
numbers; a label may be a string or a list.
"""

from __future__ import annotations

import re
import string
from typing import Any

from eval.scoring import official

_MARKS = str.maketrans("", "", "*_`\"'“”‘’")
_PUNCTUATION = str.maketrans(string.punctuation, " " * len(string.punctuation))
_STATED = re.compile(r"(?:answer|option|choice|error|function)(?:\s+\w+){0,3}?\s*(?:is|:)\s*:?\s*\(?([A-J])(?![\w'])")
_LEADING = re.compile(r"\(?([A-J])(?:\s*[).:,\n]|\s*$)")
_ALONE = re.compile(r"\(([A-J])\)|(?<![\w'])([B-HJ])(?![\w'])|(?<![\w'])([AI])(?=\s*[).:,]|\s*$)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def digits(prediction: str, label: Any) -> float:
    """The first run of as many digits as the label has is the label."""
    label = str(_first(label))
    runs = [run for run in re.findall("[0-9]+", prediction) if len(run) == len(label)]
    return float(bool(runs) and runs[0] == label)


def kv_retrieval(prediction: str, label: Any) -> float:
    """The label stands in the prediction, not as a part of a longer key."""
    return float(re.search(rf"(?<![\w-]){re.escape(str(_first(label)))}(?![\w-])", prediction) is not None)


def code_run(prediction: str, label: Any) -> float:
    """The last number is the label."""
    numbers = _NUMBER.findall(prediction.replace("−", "-"))
    return float(bool(numbers) and float(numbers[-1]) == _first(label))


def math_find(prediction: str, label: Any) -> float:
    """The first number equals the label as a number."""
    found = _NUMBER.search(prediction)
    return float(found is not None and float(found.group()) == float(_first(label)))


def math_calc(prediction: str, label: Any) -> float:
    """The longer leading run of correct values, with and without the first number; values may be negative."""
    if isinstance(label[0], list):
        label = label[0]
    values = [int(run) for run in re.findall("-?[0-9]+", prediction)]
    return max(official.leading_run(values, label), official.leading_run(values[1:], label)) / len(label)


def dialogue(prediction: str, label: Any) -> float:
    """Any alias occurs as whole words, punctuation and case aside."""
    said = f" {_plain(prediction)} "
    return float(any(f" {_plain(alias)} " in said for alias in _list(label) if _plain(alias)))


def choice(prediction: str, label: Any) -> float:
    """The letter that the prediction commits to, else the text of the right option."""
    text, letter = label
    said = chosen_letter(prediction)
    if said is not None:
        return float(said == letter)
    return float(bool(_plain(text)) and f" {_plain(text)} " in f" {_plain(prediction)} ")


def chosen_letter(prediction: str) -> str | None:
    """The option a prediction commits to: what it states last, what it starts with, or the last lone letter.

    "A" and "I" count only where they cannot be an article or a pronoun.
    """
    said = prediction.translate(_MARKS).strip()
    stated = _STATED.findall(said)
    if stated:
        return stated[-1]
    leading = _LEADING.match(said)
    if leading:
        return leading.group(1)
    alone = ["".join(groups) for groups in _ALONE.findall(said)]
    return alone[-1] if alone else None


def qa_eng(prediction: str, label: Any) -> float:
    """Best word F1 over the labels."""
    return official.qa_eng(prediction, _list(label))


def qa_chn(prediction: str, label: Any) -> float:
    """Best character F1 over the labels."""
    return official.qa_chn(prediction, _list(label))


def _first(label: Any) -> Any:
    return label[0] if isinstance(label, list) else label


def _list(label: Any) -> list[str]:
    return [str(item) for item in label] if isinstance(label, list) else [str(label)]


def _plain(text: str) -> str:
    return " ".join(text.translate(_PUNCTUATION).lower().split())


FIXED: dict[str, official.Scorer] = {
    "passkey": digits,
    "number_string": digits,
    "kv_retrieval": kv_retrieval,
    "longbook_sum_eng": official.summary,
    "longbook_qa_eng": qa_eng,
    "longbook_qa_chn": qa_chn,
    "longbook_choice_eng": choice,
    "longdialogue_qa_eng": dialogue,
    "math_find": math_find,
    "math_calc": math_calc,
    "code_run": code_run,
    "code_debug": choice,
}
