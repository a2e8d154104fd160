"""BM25: one query over many passages, by Folio, by bm25s and by rank-bm25, in turn.

Folio and bm25s add up the same postings; rank-bm25 computes the formula for every passage and is the reference of the
scores, in the variant that all three share (ATIRE weights, Robertson's idf cut off at 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import bm25s
import numpy as np
from rank_bm25 import BM25Okapi
from typer import Option

from eval.bench.base import BenchOptions, Figures, Texts, bench
from eval.bench.retrieval import knowledge_base
from eval.bench.timer import Times, timed
from eval.errors import EvalError
from retrieval.analysis.terms import terms
from retrieval.index.hybrid import top
from retrieval.index.sparse import K1, B, SparseIndex

QUERY_TERMS = 8
TOP = 10


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """BM25 beside bm25s and rank-bm25: time a query, scores and ranking."""

    passages: Annotated[int, Option(min=100, help="Passages of 60 words.")] = 20_000
    text: Texts = ()
    queries: Annotated[int, Option(min=1, help="Queries.")] = 50


def run(options: Options) -> Figures:
    """Milliseconds a query (medians), and how far scores and rankings are apart."""
    corpus = _corpus(options.passages, options.text)
    rng = np.random.default_rng(0)
    asked = [corpus[row][:QUERY_TERMS] for row in rng.choice(len(corpus), options.queries, replace=False)]
    ours = SparseIndex.build(corpus, method="atire", idf_method="robertson")
    fast = bm25s.BM25(k1=K1, b=B, method="atire", idf_method="robertson")
    fast.index(corpus, show_progress=False)
    reference = BM25Okapi(corpus, k1=K1, b=B, epsilon=0)
    engines: dict[str, Callable[[list[str]], np.ndarray]] = {
        "folio": ours.scores,
        "bm25s": fast.get_scores,
        "rank_bm25": reference.get_scores,
    }
    times = {name: Times() for name in engines}
    apart, same = 0.0, 0
    rows = np.arange(len(corpus))
    ours.scores(asked[0])  # its loop is compiled before the clock starts
    for query in asked:
        scores = {}
        for name, score in engines.items():
            scores[name], taken = timed(partial(score, query))
            times[name].append(taken)
        apart = max(apart, float(np.abs(scores["folio"] - scores["rank_bm25"]).max()))
        best = [np.round(scores[name], 4) for name in ("folio", "rank_bm25")]
        first, second = (top(one, rows, TOP) for one in best)
        same += np.array_equal(first, second)
    medians = {name: 1e3 * own.median for name, own in times.items()}
    return {
        "passages": len(corpus),
        "queries": options.queries,
        "query_terms": QUERY_TERMS,
        "ms_per_query": medians,
        "folio_over_bm25s": medians["folio"] / medians["bm25s"],
        "speedup_over_rank_bm25": medians["rank_bm25"] / medians["folio"],
        "largest_difference_of_scores": apart,
        "same_top_10": same,
        "targets": {"largest_difference_of_scores": 1e-5, "same_top_10": options.queries},
    }


def _corpus(count: int, texts: Sequence[Path]) -> list[list[str]]:
    found: list[list[str]] = []
    for file in knowledge_base.files([*texts, *knowledge_base.default_folders()]):
        for part in knowledge_base.prose(file):
            words = terms(part)
            found += [words[at : at + 60] for at in range(0, len(words), 60) if len(words) - at >= QUERY_TERMS]
        if len(found) >= count:
            return found[:count]
    raise EvalError(f"the texts give {len(found):,} passages of {count:,}; name more with --text")


command = bench(Options, run, "bm25")
