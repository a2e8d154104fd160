"""Scorers of tasks with one rule only: RULER's references, quoted sentences, LongBench's, and others'."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Any

from eval.scoring import longbench_pro
from eval.scoring.official import Scorer
from eval.tasks import babilong_style, shared_context
from eval.tasks.helmet import holds_one

_LETTER = re.compile(r"\b[A-Z]\b")
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


def answered_share(prediction: str, label: Any) -> float:
    """Share of the questions one of whose accepted answers occurs in the prediction, case-insensitively (RULER's
    string_match_part, averaged over the questions)."""
    return sum(max(reference_share(prediction, one) for one in accepted) for accepted in label) / len(label)


def one_of_its_kind(prediction: str, label: Any) -> float:
    """1 if the prediction names the label and nothing else of its kind: persons, rooms or things (BABILong's rule)."""
    words = set(re.findall(r"\w+", prediction.lower()))
    kind = next(kind for kind in babilong_style.KINDS if label in kind)
    return float({one for one in kind if one.lower() in words} == {label})


def repeated(prediction: str, label: Any) -> float:
    """How much of the label the prediction repeats, 0 to 1, if it begins with the label's code (MRCR's rule)."""
    said = prediction.strip()
    if not said.startswith(label.split()[0]):
        return 0.0
    return SequenceMatcher(None, said, label, autojunk=False).ratio()


def labelled(prediction: str, label: Any) -> float:
    """1 if the first capital letter that stands alone in the prediction is the label's."""
    said, wanted = (_LETTER.search(text) for text in (prediction, str(label)))
    return float(said is not None and wanted is not None and said.group() == wanted.group())


RULER_STYLE = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe",
)  # fmt: skip
SINGLE: dict[str, Scorer] = {f"{name}-style": reference_share for name in RULER_STYLE} | {
    "quote": quote,
    "longbench_v2": longbench_v2,
    "longbench_pro": longbench_pro.score,
    "qa_1-style": answered_share,
    "qa_2-style": answered_share,
    **dict.fromkeys(babilong_style.MAKERS, one_of_its_kind),
    "association-style": reference_share,
    "coreference-style": repeated,
    "helmet_json_kv": holds_one,
    "helmet_rag": holds_one,
    "helmet_ruler": reference_share,
    **{
        f"{task}{suffix}": labelled if "many_shot" in task else reference_share
        for task in shared_context.TASKS
        for suffix in ("", "-style")
    },
}
