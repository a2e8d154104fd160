"""Figures of answers: each held to its question, and the means of a run with standard errors."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from eval.harness.summary import score
from eval.qa import scoring
from eval.qa.corpus import Corpus
from eval.qa.dataset import Item
from eval.qa.judging import JudgedClaim, judged, spans_of
from eval.qa.replies import Reply
from service.answering.support.refusals import is_refusal

SHARES = {
    "exact_match": "answerable",
    "f1": "answerable",
    "right": "answerable",
    "cited_gold": "answerable",
    "printed_gold": "answerable",
    "sentence_hit": "answerable",
    "gold_in_evidence": "answerable",
    "false_refusal": "answerable",
    "honest": "unanswerable",
    "misled": "unanswerable",
    "loop": "all",
    "cut": "all",
    "uncited": "all",
}
"""Figures of an answer, each 0 to 1, and the questions over which its mean is taken."""


def scored(reply: Reply, item: Item, corpus: Corpus) -> dict[str, Any]:
    """One answer held to its question; README.md says what each figure is."""
    claims = judged(reply, corpus)
    cited = spans_of(claims)
    refusal = is_refusal(reply.answer)
    printed = any(scoring.prints(reply.answer, gold) for gold in item.gold)
    on_gold = corpus.cites(cited, item)
    references = [part for parts in item.answers for part in parts]
    return {
        "id": item.id,
        "unanswerable": item.unanswerable,
        "kinds": list(item.kinds),
        "language": item.language,
        "failed": reply.error is not None,
        "exact_match": scoring.exact_match(reply.answer, references, item.language),
        "f1": scoring.best_f1(reply.answer, references, item.language),
        "right": float(not refusal and (printed or scoring.holds(reply.answer, item.answers))),
        "cited_gold": float(on_gold),
        "printed_gold": float(printed),
        "sentence_hit": float(on_gold or printed),
        "gold_in_evidence": float(corpus.covers(reply.read, item)),
        "false_refusal": float(refusal),
        "honest": float(refusal or reply.finish_reason == "no_evidence"),
        "misled": float(bool(cited)),
        "loop": float(scoring.loops(reply.answer)),
        "cut": float(reply.finish_reason == "length"),
        "uncited": float(not refusal and not cited),
        "best_of_3": float(corpus.cites(reply.ranked, item)) if reply.ranked else None,
        "words": len(scoring.pieces(reply.answer)),
        "claims": [_claim(claim, item, corpus) for claim in claims],
    }


def _claim(claim: JudgedClaim, item: Item, corpus: Corpus) -> dict[str, Any]:
    right = scoring.holds(claim.text, item.answers) or any(scoring.prints(claim.text, gold) for gold in item.gold)
    return {
        "text": claim.text,
        "support": claim.support,
        "right": right,
        "on_gold": claim.support != "none" and corpus.cites(claim.spans, item),
    }


def summarise(rows: Sequence[dict[str, Any]], replies: Sequence[Reply]) -> dict[str, Any]:
    """Means in percent with standard errors and n, of answers that `scored` has held to their questions."""
    parts = {
        "all": rows,
        "answerable": [row for row in rows if not row["unanswerable"]],
        "unanswerable": [row for row in rows if row["unanswerable"]],
    }
    figures: dict[str, Any] = {
        "n": len(rows),
        "answerable": len(parts["answerable"]),
        "unanswerable": len(parts["unanswerable"]),
        "failed": sum(row["failed"] for row in rows),
    }
    figures |= {name: score([row[name] for row in parts[over]]) for name, over in SHARES.items()}
    ranked = [row["best_of_3"] for row in parts["answerable"] if row["best_of_3"] is not None]
    if ranked:
        figures["best_of_3"] = score(ranked)
    return figures | _citations(parts["answerable"]) | _means(rows, replies) | {"kinds": _kinds(parts["answerable"])}


def _citations(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Precision and recall of the citations against the gold sentences, over claims."""
    claims = [claim for row in rows for claim in row["claims"]]
    supported = [claim for claim in claims if claim["support"] != "none"]
    return {
        "claims": len(claims),
        "citation_precision": score([float(claim["on_gold"]) for claim in supported]),
        "citation_recall": score([float(claim["on_gold"]) for claim in claims if claim["right"]]),
        "supported_not_right": [claim["text"] for claim in supported if not claim["right"] and not claim["on_gold"]][
            :20
        ],
    }


def _means(rows: Sequence[dict[str, Any]], replies: Sequence[Reply]) -> dict[str, Any]:
    """Medians of length and of the engine's figures."""
    names = list(dict.fromkeys(name for reply in replies for name in reply.stats))
    medians = {name: [reply.stats[name] for reply in replies if name in reply.stats] for name in names}
    return {
        "words_median": statistics.median(row["words"] for row in rows) if rows else None,
        "medians": {name: statistics.median(values) for name, values in medians.items()},
    }


def _kinds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Right answers by kind of question."""
    names = sorted({kind for row in rows for kind in row["kinds"]})
    return {name: score([row["right"] for row in rows if name in row["kinds"]]) for name in names}
