"""``folio eval support``: precision and recall of the rule of support on pairs that a person or a rule judged.

Precision: the share of right ones among the claims that the rule supports. Recall: the share of the right claims that
it supports. Both halves are printed; the threshold was set on the development half alone, as the sweep shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval.qa.support_pairs import HALVES, Pair, pairs
from service.answering.passages import Passage
from service.answering.support.judge import THRESHOLD, Supported, judge


@dataclass(frozen=True)
class Verdict:
    """A pair and what the rule said."""

    pair: Pair
    supported: bool
    score: float


def verdicts(given: Iterable[Pair]) -> list[Verdict]:
    """The rule's word on each pair."""
    return [_verdict(pair) for pair in given]


def _verdict(pair: Pair) -> Verdict:
    passages = [Passage(f"p{n}", f"p{n}", 0, len(text), None, text) for n, text in enumerate(pair.passages)]
    answer = f"{pair.before}\n\n{pair.claim}" if pair.before else pair.claim
    start = len(answer) - len(pair.claim)
    judged = [one for one in judge(answer, passages) if one.claim.end > start]
    return Verdict(pair, bool(judged) and all(map(_carried, judged)), min((one.score for one in judged), default=0.0))


def _carried(one: Supported) -> bool:
    return one.support != "none"


def figures(found: Sequence[Verdict]) -> dict[str, Any]:
    """Precision and recall with their standard errors, and how many pairs they are of."""
    given = [one for one in found if one.supported]
    right = [one for one in found if one.pair.right]
    hits = sum(one.supported for one in right)
    return {
        "n": len(found),
        "right": len(right),
        "supported": len(given),
        "precision": _share(hits, len(given)),
        "recall": _share(hits, len(right)),
    }


def _share(hits: int, n: int) -> dict[str, float] | None:
    """The share and its standard error, which is Agresti and Coull's: it is not 0 where there was no error among n."""
    if not n:
        return None
    assumed = (hits + 2) / (n + 4)
    return {"value": round(hits / n, 4), "stderr": round(math.sqrt(assumed * (1 - assumed) / (n + 4)), 4)}


def measure() -> dict[str, Any]:
    """Figures by half and source, and of the false claims that passed by kind."""
    found = verdicts(pairs())
    result: dict[str, Any] = {"threshold": THRESHOLD, "sweep": sweep(found), "halves": {}}
    for half in HALVES:
        mine = [one for one in found if one.pair.half == half]
        sources = {source: [one for one in mine if one.pair.source == source] for source in ("hand", "rule", "model")}
        kinds = sorted({one.pair.kind for one in mine if not one.pair.right})
        result["halves"][half] = {
            "all": figures(mine),
            **{source: figures(each) for source, each in sources.items() if each},
            "false_passed": {kind: _passed(mine, kind) for kind in kinds},
        }
    result["passed"] = [
        {"half": one.pair.half, "kind": one.pair.kind, "claim": one.pair.claim}
        for one in found
        if one.supported and not one.pair.right
    ]
    return result


def _passed(found: Sequence[Verdict], kind: str) -> str:
    false = [one for one in found if one.pair.kind == kind and not one.pair.right]
    return f"{sum(one.supported for one in false)} of {len(false)}"


def sweep(found: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Precision and recall of the development half by threshold."""
    mine = [one for one in found if one.pair.half == HALVES[0]]
    rows = []
    for threshold in (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99):
        moved = [replace(one, supported=one.score >= threshold) for one in mine]
        rows.append({"threshold": threshold, **figures(moved)})
    return rows


def lines(result: dict[str, Any]) -> list[str]:
    """The figures as a table for people."""
    rows = [f"{'half':12} {'source':7} {'n':>4} {'right':>5}  precision        recall"]
    for half, each in result["halves"].items():
        for source in ("all", "hand", "rule", "model"):
            one = each.get(source)
            if one is not None:
                rows.append(f"{half:12} {source:7} {one['n']:4} {one['right']:5}  {_shown(one)}")
        passed = ", ".join(f"{kind} {said}" for kind, said in each["false_passed"].items())
        rows.append(f"{half:12} false claims that passed: {passed}")
    rows.append(f"threshold {result['threshold']}; on the development half:")
    rows += [f"  {row['threshold']:4.2f}  {_shown(row)}" for row in result["sweep"]]
    return rows


def _shown(figures: dict[str, Any]) -> str:
    parts = (figures["precision"], figures["recall"])
    return "  ".join(f"{100 * p['value']:5.1f} ± {100 * p['stderr']:3.1f} %" if p else f"{'-':>13}" for p in parts)
