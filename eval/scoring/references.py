"""Scorers of tasks with one rule only: RULER's references, quoted sentences, LongBench v2's letters."""

from __future__ import annotations

import re
from typing import Any

from eval.scoring.official import Scorer

_LONGBENCH = re.compile(r"The correct answer is \(?([A-D])\)?")


def reference_share(prediction: str, label: Any) -> float:
    """Share of the references that occur in the prediction, case-insensitively (RULER's string_match_all)."""
    references = label if isinstance(label, list) else [label]
    if not references:
        return 0.0
    return sum(str(reference).lower() in prediction.lower() for reference in references) / len(references)


def quote(prediction: str, label: Any) -> float:
    """1 if the prediction holds the labelled sentence verbatim, white space aside."""
    references = label if isinstance(label, list) else [label]
    said = " ".join(prediction.split())
    return float(any(" ".join(str(reference).split()) in said for reference in references))


def longbench_v2(prediction: str, label: Any) -> float:
    """The letter of "The correct answer is (X)" without Markdown stars, as LongBench v2's own script reads it."""
    found = _LONGBENCH.search(prediction.replace("*", ""))
    return float(found is not None and found.group(1) == label)


RULER_STYLE = ("niah_single_1", "niah_multikey", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe")
SINGLE: dict[str, Scorer] = {f"{name}-style": reference_share for name in RULER_STYLE} | {
    "quote": quote,
    "longbench_v2": longbench_v2,
}
