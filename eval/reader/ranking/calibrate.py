"""Fit what makes probabilities of the ranker's features, on questions whose articles training has not seen.

    python -m eval.reader.ranking.calibrate --selqa selqa-ass-{dev,test}.json --pairs src-test.txt tgt-test.txt \\
        --kept xquad.en.json --model DIR

Each held question is asked of the passages that MiniLM finds for it among all passages, as the service asks: once as
found, once without those that answer. A half of the articles fits, the other half measures; the figures of that half,
with its curve of risk and coverage, are written beside the weights.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.reader.ranking import data
from eval.reader.ranking.data import Example, Passage
from retrieval.embedding.embedder import SentenceEmbedder
from retrieval.ranking.cross_encoder import CrossEncoder
from retrieval.ranking.features import NAMES, lexical
from retrieval.ranking.ranker import CALIBRATION, CosineScorer, PassageScorer, Scorer

PASSAGES = 8
RIDGE = 1e-4
WRONG_AT_MOST = 1 / 3
"""of the answers given to questions that the passages do not answer: what the threshold allows"""


@dataclass(frozen=True)
class Asked:
    """A question over passages, as a ranker sees it. marked: bool[n], the sentences that answer."""

    question: str
    sentences: list[str]
    contexts: list[str]
    marked: np.ndarray
    fits: bool


def drawn(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """As many from the one set as from the other, as far as there are any."""
    sets = [[e for e in examples if (e.article == data.PAIRS_HELD) == pairs] for pairs in (False, True)]
    return [e for part in sets for e in data.shuffled(part, seed, 0)[: count // 2]]


def asked_of(examples: Sequence[Example], pool: Sequence[Passage], seed: int) -> list[Asked]:
    """Each question twice: over the nearest passages with the answering one, and over the nearest without."""
    articles = sorted({example.article for example in examples})
    fitting = set(random.Random(seed).sample(articles, len(articles) // 2))
    found = []
    for n, example in enumerate(examples):
        fits = example.article in fitting if example.article != data.PAIRS_HELD else n % 2 == 0
        near = [(pool[other], frozenset[int]()) for other in example.other]
        for passages in ([*example.passages, *near][:PASSAGES], near[:PASSAGES]):
            draw = list(passages)
            random.Random(n).shuffle(draw)
            sentences = [s for passage, _ in draw for s in passage.sentences]
            contexts = [passage.text for passage, _ in draw for _ in passage.sentences]
            marked = np.array([k in m for passage, m in draw for k in range(len(passage.sentences))])
            found.append(Asked(example.question, sentences, contexts, marked, fits))
    return found


def fit(features: np.ndarray, marked: np.ndarray) -> tuple[np.ndarray, float]:
    """Logistic regression by Newton's method, with a ridge on standardised features: (weights, bias)."""
    mean, scale = features.mean(0), features.std(0) + 1e-9
    matrix = np.concatenate([(features - mean) / scale, np.ones((len(features), 1))], axis=1)
    theta = np.zeros(matrix.shape[1])
    ridge = RIDGE * len(features) * np.diag([*[1.0] * features.shape[1], 0.0])
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(matrix @ theta, -30, 30)))
        hessian = (matrix * (p * (1 - p))[:, None]).T @ matrix + ridge + 1e-9 * np.eye(len(theta))
        theta -= np.linalg.solve(hessian, matrix.T @ (p - marked) + ridge @ theta)
    found = theta[:-1] / scale
    return found, float(theta[-1] - found @ mean)


def figures(questions: Sequence[Asked], logits: Sequence[np.ndarray]) -> dict[str, Any]:
    """Choice where an answer is there; coverage and risk by threshold; the threshold itself."""
    there = [(q, x) for q, x in zip(questions, logits, strict=True) if q.marked.any()]
    absent = [x for q, x in zip(questions, logits, strict=True) if not q.marked.any()]
    right = np.array([bool(q.marked[int(x.argmax())]) for q, x in there])
    three = np.array([bool(q.marked[np.argsort(-x)[:3]].any()) for q, x in there])
    best = np.array([x.max() for _, x in there])
    chosen = {
        "questions": len(there),
        "right": round(float(right.mean()), 4),
        "right_se": round(float(right.std() / np.sqrt(len(right))), 4),
        "in_best_three": round(float(three.mean()), 4),
    }
    if not absent:
        return chosen
    bare = np.array([x.max() for x in absent])
    curve = []
    for threshold in np.unique(np.quantile(np.concatenate([best, bare]), np.linspace(0, 0.98, 50))):
        given = int((best >= threshold).sum())
        wrong = int((~right & (best >= threshold)).sum())
        fooled = int((bare >= threshold).sum())
        curve.append(
            {
                "probability": round(float(1 / (1 + np.exp(-threshold))), 4),
                "answered": round(given / len(best), 4),
                "right_of_answered": round(1 - wrong / max(given, 1), 4),
                "answered_without_answer": round(fooled / len(bare), 4),
            }
        )
    return chosen | {"curve": curve}


def threshold_of(curve: Sequence[dict[str, Any]]) -> float:
    """The lowest probability at which questions without an answer are answered `WRONG_AT_MOST` of the time."""
    return next(point["probability"] for point in curve if point["answered_without_answer"] <= WRONG_AT_MOST)


def control(question: Asked, embedder: SentenceEmbedder) -> np.ndarray:
    """What a ranker has to beat: cosine plus the share of the question's words, weighed by idf."""
    vectors = embedder.encode_queries([question.question, *question.sentences])
    return vectors[1:] @ vectors[0] + lexical(question.question, question.sentences, question.contexts)[:, 0]


def calibrate(scorer: Scorer, questions: Sequence[Asked], words: Sequence[np.ndarray]) -> dict[str, Any]:
    """words: of each question, what `features.lexical` sees."""
    seen = [
        np.concatenate([scorer.read(q.question, q.sentences, q.contexts, rows), rows], axis=1)
        for q, rows in zip(questions, words, strict=True)
    ]
    return fitted(seen, questions, [*scorer.columns, *NAMES])


def fitted(seen: Sequence[np.ndarray], questions: Sequence[Asked], names: Sequence[str]) -> dict[str, Any]:
    """Fit on one half; figures and threshold of both models on the other."""
    chosen = [n for n, q in enumerate(questions) if q.fits]
    features = np.concatenate([seen[n] for n in chosen]).astype(np.float64)
    marked = np.concatenate([questions[n].marked for n in chosen]).astype(np.float64)
    weights, bias = fit(features, marked)
    rest = [n for n, q in enumerate(questions) if not q.fits]
    found = figures([questions[n] for n in rest], [seen[n] @ weights + bias for n in rest])
    tuned = figures([questions[n] for n in chosen], [seen[n] @ weights + bias for n in chosen])
    return {
        "names": list(names),
        "weights": [round(float(w), 6) for w in weights],
        "bias": round(bias, 6),
        "refuse_below": threshold_of(tuned["curve"]),
        "figures": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--selqa", type=Path, nargs="+", required=True)
    parser.add_argument("--pairs", type=Path, nargs=2)
    parser.add_argument("--kept", type=Path, nargs="*", default=[])
    parser.add_argument("--model", type=Path, required=True, help="folder of the cross-encoder's weights")
    parser.add_argument(
        "--questions", type=int, default=400, help="held questions, half of each set, drawn by the seed"
    )
    parser.add_argument("--cosine", action="store_true", help="also the ranker over an encoder's cosines")
    parser.add_argument("--cache", type=Path, help="file for the nearest passages, made where absent; default: in DIR")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    embedder = SentenceEmbedder()
    cache = options.cache or options.model / "near.json"
    sets = data.prepare(options.selqa, options.pairs, options.kept, embedder.encode_queries, cache, options.seed)
    held = drawn(sets.dev, options.questions, options.seed)
    questions = asked_of(held, sets.pool, options.seed)
    path = options.model / CALIBRATION
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    words = [lexical(q.question, q.sentences, q.contexts) for q in questions]
    found["words"] = fitted(words, questions, NAMES)
    rest = [q for q in questions if not q.fits and q.marked.any()][:200]
    found["control"] = figures(rest, [control(q, embedder) for q in rest])
    found["minilm"] = calibrate(PassageScorer(CrossEncoder(embedder.folder, options.model), embedder), questions, words)
    if options.cosine:
        found["cosine"] = calibrate(CosineScorer(embedder), questions, words)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, entry in found.items():
        entry = entry.get("figures", entry)
        print(name, {k: v for k, v in entry.items() if k != "curve"}, flush=True)


if __name__ == "__main__":
    main()
