"""LongBench Pro's metrics (Chen et al. 2026, arXiv 2601.02872): an answer is lines, held to the lines that are right.

The prediction is what stands behind the last ``[Answer]``, else ``[答案]``, or all of it; in lower case, blanks joined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

_MARKS = ("[Answer]", "[答案]")


def _lines(prediction: str) -> list[str]:
    mark = next((mark for mark in _MARKS if mark in prediction), None)
    text = prediction.rpartition(mark)[2] if mark else prediction
    return [" ".join(line.split()) for line in text.lower().strip().split("\n")]


def accuracy(said: list[str], right: list[str]) -> float:
    """1 if the first line is the first of the answer."""
    return float(said[0] == right[0])


def found_share(said: list[str], right: list[str]) -> float:
    """Share of the answer's lines that are lines of the prediction (the paper's SubEM)."""
    return sum(line in said for line in right) / len(right)


def f1(said: list[str], right: list[str]) -> float:
    """F1 of the two sets of lines."""
    common = len(set(said) & set(right))
    return 2 * common / (len(set(said)) + len(set(right)))


def pairwise_accuracy(said: list[str], right: list[str]) -> float:
    """Pairs of the answer's lines that the prediction has in this order, over all pairs of its lines."""
    if len(said) < 2:
        return 0.0
    place = {line: at for at, line in enumerate(said)}
    in_order = sum(place[a] < place[b] for a, b in combinations(right, 2) if a in place and b in place)
    return in_order / math.comb(len(said), 2)


def ndcg(said: list[str], right: list[str]) -> float:
    """Normalised discounted gain at as many lines as the answer has, whose i-th of k is worth k - i.

    A line that is said twice stands where it was said last, as trec_eval has it.
    """
    gain = {line: len(right) - at for at, line in enumerate(right)}
    last = {line: at for at, line in enumerate(said)}
    ranked = sorted(last, key=last.__getitem__)[: len(right)]
    best = sorted(gain.values(), reverse=True)
    return _discounted([gain.get(line, 0) for line in ranked]) / _discounted(best)


def _discounted(gains: list[int]) -> float:
    return sum(gain / math.log2(at + 2) for at, gain in enumerate(gains))


METRICS: dict[str, Callable[[list[str], list[str]], float]] = {
    "T1.1 Global Cohesive Retrieval": ndcg,
    "T1.2 Key-Snippet Retrieval": ndcg,
    "T2.1 Global Timeline Reconstruction": pairwise_accuracy,
    "T2.2 Local Causal Chain Sorting": pairwise_accuracy,
    "T3.1 Multi-Doc Integration QA": accuracy,
    "T3.2 Single-Hop Fact QA": accuracy,
    "T5.1 Full-Sentence Citation Alignment": f1,
    "T5.2 Key-Statement Citation Alignment": f1,
    "T6.1 Large-Scale Document Clustering": found_share,
    "T6.2 Targeted Subset Cluster Identification": f1,
    "T6.3 Global Frequency Analysis": pairwise_accuracy,
    "T7.1 Global Conflict & Inconsistency Localization": f1,
    "T7.2 Targeted Rule or Condition Violation Detection": f1,
    "T7.3 Comprehensive Error & Anomaly Sweep": f1,
    "T8.1 Structured Multi-Source Consistency Verification": found_share,
    "T8.2 Single-Source Targeted Aggregation": found_share,
    "T8.3 Long-Context Procedural State Tracking": found_share,
    "T9.1 Dependency-Aware Multi-Version Impact Analysis": f1,
    "T9.2 Localized Interface Change Detection": f1,
    "T10.1 Large-Scale In-Context Rule Induction": found_share,
    "T10.2 Targeted Example-Based Rule Induction": found_share,
    "T11.1 Long-Range Entity & Commitment Tracking": accuracy,
    "T11.2 Short-Range Reference Resolution & State Query": accuracy,
}


def score(prediction: str, label: Any) -> float:
    """The metric of the label's task, 0 to 1; nothing said is 0."""
    if not prediction.strip():
        return 0.0
    right = [" ".join(str(line).lower().split()) for line in label["answer"]]
    return METRICS[label["task"]](_lines(prediction), right)
