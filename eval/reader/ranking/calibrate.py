"""Fit what makes probabilities of the ranker's features, on questions whose texts training has not seen.

    python -m eval.reader.ranking.calibrate --selqa selqa-ass-{dev,test}.json --pairs src-test.txt tgt-test.txt \\
        --kept xquad.en.json --model DIR

Each held question is asked of the passages that MiniLM finds for it among all passages, as the service asks: once as
found, once without those that answer. A half of the articles fits, the other half measures. Beside them stand the
questions of ``own.json`` about texts of other kinds (manuals, letters, a story; `OWN`), some of which nothing answers:
asked of what the library finds, likewise once without the answer. All of them fit, each document measured by a fit
without it. The figures, with their curves of risk and coverage, are written beside the weights.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.qa.corpus import Corpus
from eval.qa.dataset import Item, load
from eval.reader.ranking import data
from eval.reader.ranking.data import Example
from retrieval.embedding.embedder import DEFAULT, SentenceEmbedder, make_embedder
from retrieval.ranking.cross_encoder import CrossEncoder
from retrieval.ranking.features import NAMES, lexical
from retrieval.ranking.ranker import (
    CALIBRATION,
    FOUND_CHARS,
    UNREAD,
    CosineScorer,
    Logistic,
    PassageScorer,
    Scorer,
    looked_at,
)
from retrieval.ranking.reading import cut
from retrieval.types import Hit
from service.answering.passages import Passage, canonical
from service.reader.contexts import contexts
from service.reader.sentences import LONGEST_QUOTED, split

PASSAGES = 8
RIDGE = 1e-4
SLACK = 0.03
OWN = Path(__file__).with_name("own.json")


@dataclass(frozen=True)
class Asked:
    """A question over passages, as a ranker sees it.

    Attributes:
        marked: bool[n], the sentences that answer.
        fits: whether it is fitted on; else it measures.
        document: of our own texts, "" for an encyclopedia's article.
    """

    question: str
    sentences: list[str]
    contexts: list[str]
    marked: np.ndarray
    fits: bool
    document: str = ""


def drawn(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """As many from the one set as from the other, as far as there are any."""
    sets = [[e for e in examples if (e.article == data.PAIRS_HELD) == pairs] for pairs in (False, True)]
    return [e for part in sets for e in data.shuffled(part, seed, 0)[: count // 2]]


def asked_of(examples: Sequence[Example], pool: Sequence[data.Passage], seed: int) -> list[Asked]:
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
            around = [passage.text for passage, _ in draw for _ in passage.sentences]
            marked = np.array([k in m for passage, m in draw for k in range(len(passage.sentences))])
            found.append(Asked(example.question, sentences, around, marked, fits))
    return found


def asked_of_own(path: Path, embedder: str) -> list[Asked]:
    """The questions of a file of ``folio eval qa``'s own format, over what the library finds, if anything."""
    dataset = load(path)
    found = []
    with tempfile.TemporaryDirectory() as home, Corpus(dataset, Path(home), embedder) as corpus:
        for item in dataset.items:
            hits = corpus.library.search(item.question, PASSAGES + 4).hits
            rest = [hit for hit in hits if not corpus.covers([(corpus.names[hit.document], hit.start, hit.end)], item)]
            for read in (hits,) if item.unanswerable else (hits, rest):
                found.append(_asked(item, read[:PASSAGES], corpus))
    return [asked for asked in found if asked.sentences]


def _asked(item: Item, hits: Sequence[Hit], corpus: Corpus) -> Asked:
    """As `service.reader.layout` has it asked."""
    given = [Passage.of(hit) for hit in hits]
    read = [(one, sentence) for one in canonical(given) for sentence in split(one.text, LONGEST_QUOTED)]
    spans = [(corpus.names[one.document], one.start + s.start, one.start + s.end) for one, s in read]
    marked = np.array([corpus.cites([span], item) for span in spans], dtype=bool)
    return Asked(item.question, [s.words for _, s in read], contexts(read, given), marked, True, item.document)


def alone(questions: Sequence[Asked]) -> tuple[list[Asked], list[Asked]]:
    """Held questions asked of the passage that answers and of no other: as it is, and without the sentences that do."""
    there, bare = [], []
    for q in questions:
        if q.document or not q.marked.any():
            continue
        home = q.contexts[int(q.marked.argmax())]
        numbers = [n for n, context in enumerate(q.contexts) if context == home]
        rest = [n for n in numbers if not q.marked[n]]
        if len(rest) > 1:
            there.append(_part(q, numbers))
            bare.append(_part(q, rest))
    return there, bare


def _part(q: Asked, numbers: Sequence[int]) -> Asked:
    """The same question over some of the sentences."""
    sentences = [q.sentences[n] for n in numbers]
    return Asked(q.question, sentences, cut(q.sentences, q.contexts, numbers), q.marked[list(numbers)], q.fits)


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


def threshold_of(sets: Sequence[tuple[Sequence[Asked], Sequence[np.ndarray]]]) -> float:
    """The probability below which to refuse: where the share of questions with an answer that get one, less the share
    of the others that do (Youden 1950), is largest on the mean of the sets; the lowest of those that are as good but
    for `SLACK`, since it is flat there and an answer that is refused is lost."""
    best = [(np.array([x.max() for x in xs]), np.array([q.marked.any() for q in qs])) for qs, xs in sets]

    def gain(bound: float) -> float:
        return float(np.mean([(x[there] >= bound).mean() - (x[~there] >= bound).mean() for x, there in best]))

    gains = {float(bound): gain(bound) for bound in np.concatenate([x for x, _ in best])}
    bound = min(bound for bound, found in gains.items() if found >= max(gains.values()) - SLACK)
    return round(float(1 / (1 + np.exp(-bound))), 4)


def fall_of(bound: float, many: Sequence[np.ndarray], few: Sequence[np.ndarray]) -> float:
    """How far the bound falls for fewer sentences (`Logistic.fall`): so far that of questions that nothing answers as
    many slip through over one passage as over all that were found.

    many, few: the logits of such questions.
    """
    if not many or not few:
        return 0.0
    logit = float(np.log(bound / (1 - bound)))
    slips = float(np.mean([x.max() >= logit for x in many]))
    same = float(np.quantile([x.max() for x in few], 1 - slips))
    sizes = [float(np.median([len(x) for x in side])) for side in (many, few)]
    return round(max(0.0, (logit - same) / float(np.log(sizes[0] / sizes[1]))), 3)


def control(question: Asked, embedder: SentenceEmbedder) -> np.ndarray:
    """What a ranker has to beat: cosine plus the share of the question's words, weighed by idf."""
    vectors = embedder.encode_queries([question.question, *question.sentences])
    return vectors[1:] @ vectors[0] + lexical(question.question, question.sentences, question.contexts)[:, 0]


Seen = tuple[Sequence[int], np.ndarray]
"""Numbers of the sentences of a question that are read, and all that is then known of them."""
Look = Callable[[Sequence[Asked]], list[Seen]]


def calibrate(scorer: Scorer, words: Logistic, questions: Sequence[Asked]) -> dict[str, Any]:
    """Of what the scorer and `features.lexical` see, over the questions that the scorer reads."""

    def look(asked: Sequence[Asked]) -> list[Seen]:
        seen = (lexical(q.question, q.sentences, q.contexts) for q in asked)
        return [
            looked_at(scorer, words, q.question, q.sentences, q.contexts, rows, FOUND_CHARS)
            for q, rows in zip(asked, seen, strict=True)
        ]

    return fitted(look, [q for q in questions if scorer.knows(q.question)], [*scorer.columns, *NAMES])


def by_words(questions: Sequence[Asked]) -> list[Seen]:
    """What is seen of every sentence without reading."""
    return [(range(len(q.sentences)), lexical(q.question, q.sentences, q.contexts)) for q in questions]


def logits_of(seen: Seen, question: Asked, weights: np.ndarray, bias: float) -> np.ndarray:
    numbers, features = seen
    found = np.full(len(question.sentences), UNREAD)
    found[list(numbers)] = features @ weights + bias
    return found


def fitted(look: Look, questions: Sequence[Asked], names: Sequence[str]) -> dict[str, Any]:
    """Fit on one half and our own; the threshold on both; figures on the other half, and on our own by fits without
    the document."""
    seen = look(questions)

    def fit_on(chosen: Sequence[int]) -> tuple[np.ndarray, float]:
        features = np.concatenate([seen[n][1] for n in chosen]).astype(np.float64)
        marked = np.concatenate([questions[n].marked[list(seen[n][0])] for n in chosen])
        return fit(features, marked.astype(np.float64))

    fits = [n for n, q in enumerate(questions) if q.fits]
    own = [n for n in fits if questions[n].document]
    weights, bias = fit_on(fits)
    logits = [logits_of(one, q, weights, bias) for one, q in zip(seen, questions, strict=True)]
    for document in sorted({questions[n].document for n in own}):
        other, constant = fit_on([n for n in fits if questions[n].document != document])
        for n in own:
            if questions[n].document == document:
                logits[n] = logits_of(seen[n], questions[n], other, constant)

    def part(numbers: Sequence[int]) -> tuple[list[Asked], list[np.ndarray]]:
        return [questions[n] for n in numbers], [logits[n] for n in numbers]

    bare = [n for n in fits if not questions[n].document and not questions[n].marked.any()]
    there, without = alone(questions)
    single = [[logits_of(*one, weights, bias) for one in zip(look(qs), qs, strict=True)] for qs in (there, without)]
    halves = [part([n for n in fits if not questions[n].document]), part(own)]
    bound = threshold_of([half for half in halves if half[0]])
    return {
        "names": list(names),
        "weights": [round(float(w), 6) for w in weights],
        "bias": round(bias, 6),
        "refuse_below": bound,
        "fall": fall_of(bound, [logits[n] for n in bare], single[1]),
        "alone": figures([*there, *without], [*single[0], *single[1]]),
        "figures": figures(*part([n for n, q in enumerate(questions) if not q.fits])),
        "own": figures(*halves[1]),
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
    parser.add_argument("--cosine", help="also the ranker over the cosines of this encoder, as FOLIO_EMBEDDER names it")
    parser.add_argument("--cache", type=Path, help="file for the nearest passages, made where absent; default: in DIR")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    embedder = SentenceEmbedder()
    cache = options.cache or options.model / "near.json"
    sets = data.prepare(options.selqa, options.pairs, options.kept, embedder.encode_queries, cache, options.seed)
    held = drawn(sets.dev, options.questions, options.seed)
    questions = asked_of(held, sets.pool, options.seed)
    own = asked_of_own(OWN, DEFAULT)
    path = options.model / CALIBRATION
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    asked = [*questions, *own]
    found["words"] = fitted(by_words, asked, NAMES)
    words = Logistic.of(found["words"])
    rest = [q for q in questions if not q.fits and q.marked.any()]
    found["control"] = figures(rest, [control(q, embedder) for q in rest])
    found["minilm"] = calibrate(PassageScorer(CrossEncoder(embedder.folder, options.model), embedder), words, asked)
    if options.cosine:
        other = make_embedder(options.cosine)
        some = asked_of(drawn(sets.dev, options.questions // 5, options.seed), sets.pool, options.seed)  # it is slow
        found["cosine"] = calibrate(CosineScorer(other), words, [*some, *asked_of_own(OWN, options.cosine)])
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, entry in found.items():
        for part in ("figures", "own", "alone"):
            shown = {k: v for k, v in entry.get(part, entry).items() if k != "curve"}
            print(name, part, entry.get("refuse_below"), shown, flush=True)


if __name__ == "__main__":
    main()
