"""BM25: one query over many passages, by Folio, by bm25s and by rank-bm25, in turn.

Folio and bm25s add up the same postings; rank-bm25 computes the formula for every passage and is the reference of the
scores, in the variant that all three share (ATIRE weights, Robertson's idf cut off at 0).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from eval.bench import _passages
from eval.errors import EvalError
from eval.figures import report_result

QUERY_TERMS = 8
TOP = 10


def run(passages: int, texts: Sequence[Path], queries: int) -> dict[str, Any]:
    """Milliseconds a query (medians), and how far scores and rankings are apart."""
    import bm25s
    from rank_bm25 import BM25Okapi

    from retrieval.index.hybrid import top
    from retrieval.index.sparse import K1, B, SparseIndex, terms

    corpus = _corpus(passages, texts, terms)
    rng = np.random.default_rng(0)
    asked = [corpus[row][:QUERY_TERMS] for row in rng.choice(len(corpus), queries, replace=False)]
    ours = SparseIndex.build(corpus, method="atire", idf_method="robertson")
    fast = bm25s.BM25(k1=K1, b=B, method="atire", idf_method="robertson")
    fast.index(corpus, show_progress=False)
    reference = BM25Okapi(corpus, k1=K1, b=B, epsilon=0)
    engines: dict[str, Callable[[list[str]], np.ndarray]] = {
        "folio": ours.scores,
        "bm25s": fast.get_scores,
        "rank_bm25": reference.get_scores,
    }
    times: dict[str, list[float]] = {name: [] for name in engines}
    apart, same = 0.0, 0
    rows = np.arange(len(corpus))
    ours.scores(asked[0])  # its loop is compiled before the clock starts
    for query in asked:
        scores = {}
        for name, score in engines.items():
            started = time.perf_counter()
            scores[name] = score(query)
            times[name].append(time.perf_counter() - started)
        apart = max(apart, float(np.abs(scores["folio"] - scores["rank_bm25"]).max()))
        best = [np.round(scores[name], 4) for name in ("folio", "rank_bm25")]
        first, second = (top(one, rows, TOP) for one in best)
        same += np.array_equal(first, second)
    medians = {name: 1e3 * statistics.median(taken) for name, taken in times.items()}
    return {
        "passages": len(corpus),
        "queries": queries,
        "query_terms": QUERY_TERMS,
        "ms_per_query": medians,
        "folio_over_bm25s": medians["folio"] / medians["bm25s"],
        "speedup_over_rank_bm25": medians["rank_bm25"] / medians["folio"],
        "largest_difference_of_scores": apart,
        "same_top_10": same,
        "targets": {"largest_difference_of_scores": 1e-5, "same_top_10": queries},
    }


def _corpus(count: int, texts: Sequence[Path], terms: Callable[[str], list[str]]) -> list[list[str]]:
    found: list[list[str]] = []
    for file in _passages.files([*texts, *_passages.default_folders()]):
        for part in _passages.prose(file):
            words = terms(part)
            found += [words[at : at + 60] for at in range(0, len(words), 60) if len(words) - at >= QUERY_TERMS]
        if len(found) >= count:
            return found[:count]
    raise EvalError(f"the texts give {len(found):,} passages of {count:,}; name more with --text")


def command(
    passages: Annotated[int, typer.Option(help="Passages of 60 words.", min=100)] = 20_000,
    text: Annotated[list[Path] | None, typer.Option(help="Folder of texts, before the default ones.")] = None,
    queries: Annotated[int, typer.Option(help="Queries.", min=1)] = 50,
    output: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures")] = False,
) -> None:
    """BM25 beside bm25s and rank-bm25: time a query, scores and ranking."""
    report_result("bm25", run(passages, text or [], queries), as_json=as_json, output=output)
