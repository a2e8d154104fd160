"""Right sentences on SQuAD-like files, which nothing here was trained or tuned on.

    python -m eval.reader.ranking.evaluate ../shared/xquad/xquad.en.json --limit 400 --out eval/results/ranker_en.json

Closed: the best sentence of the question's own paragraph. Open: that of the eight passages that the library finds among
all paragraphs. A sentence is right where it holds the answer at the place that people marked. Refusals are counted over
what the library finds, and over the same without the passages that hold the answer. Beside the ranker: the cosine of
the embedding model plus shared words (the control), and for the order of passages the search itself.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.embedding.embedder import make_embedder
from retrieval.embedding.encoding import Embedder
from retrieval.library import Library
from retrieval.parsing.sentences import sentences
from retrieval.ranking.features import lexical
from retrieval.ranking.ranker import load_ranker
from retrieval.types import Upload

PASSAGES = 8


@dataclass(frozen=True)
class Gold:
    """A question and where its answer stands: characters `start:end` of paragraph `paragraph` of `article`."""

    question: str
    article: str
    paragraph: int
    start: int
    end: int


Score = Callable[[str, Sequence[str], Sequence[str]], np.ndarray]


def read(path: Path) -> tuple[dict[str, list[str]], list[Gold]]:
    """The paragraphs of each article, and the questions."""
    articles: dict[str, list[str]] = {}
    asked = []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        articles[article["title"]] = [p["context"] for p in article["paragraphs"]]
        for number, paragraph in enumerate(article["paragraphs"]):
            for qa in paragraph["qas"]:
                answer = qa["answers"][0]
                start = answer["answer_start"]
                asked.append(Gold(qa["question"], article["title"], number, start, start + len(answer["text"])))
    return articles, asked


def closed(articles: dict[str, list[str]], asked: Sequence[Gold], score: Score) -> Iterator[bool]:
    for gold in asked:
        text = articles[gold.article][gold.paragraph]
        spans = list(sentences(text))
        scores = score(gold.question, [text[a:b] for a, b in spans], [text] * len(spans))
        start, end = spans[int(np.argmax(scores))]
        yield start < gold.end and gold.start < end


@dataclass(frozen=True)
class Searched:
    """Of one question in the open: which hits hold the answer, and the sentences of the hits with theirs."""

    hits: list[bool]
    sentences: list[str]
    contexts: list[str]
    right: list[bool]


def search(library: Library, articles: dict[str, list[str]], gold: Gold, **options: Any) -> Searched:
    start = sum(len(text) + 2 for text in articles[gold.article][: gold.paragraph]) + gold.start
    end = start + gold.end - gold.start
    found = Searched([], [], [], [])
    for hit in library.search(gold.question, PASSAGES, **options).hits:
        own = hit.name == file_name(gold.article)
        found.hits.append(own and hit.start <= start and end <= hit.end)
        for a, b in sentences(hit.text):
            found.sentences.append(hit.text[a:b])
            found.contexts.append(hit.text)
            found.right.append(own and hit.start + a < end and start < hit.start + b)
    return found


def without_answer(found: Searched) -> Searched:
    """The same without the hits that hold the answer."""
    held = {context for context, right in zip(found.contexts, found.right, strict=True) if right}
    kept = [n for n, context in enumerate(found.contexts) if context not in held]
    sentences, contexts = ([side[n] for n in kept] for side in (found.sentences, found.contexts))
    return Searched([hit for hit in found.hits if not hit], sentences, contexts, [False] * len(kept))


def file_name(article: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in article) + ".txt"


def opened(folder: str, articles: dict[str, list[str]], embedder: str | None, ranker: str | None) -> Library:
    library = Library.open(folder, embedder=embedder, ranker=ranker)
    library.ingest([Upload(file_name(a), "\n\n".join(texts).encode()) for a, texts in articles.items()])
    return library


def control_of(embedder: Embedder) -> Score:
    def score(question: str, found: Sequence[str], contexts: Sequence[str]) -> np.ndarray:
        vectors = embedder.encode_documents(list(found))
        return vectors @ embedder.encode_queries([question])[0] + lexical(question, found)[:, 0]

    return score


def share(right: Sequence[bool]) -> dict[str, float]:
    p = float(np.mean(right))
    return {"share": round(p, 4), "se": round((p * (1 - p) / len(right)) ** 0.5, 4), "n": len(right)}


def places(found: Sequence[Searched]) -> dict[str, Any]:
    first = [one.hits.index(True) + 1 if True in one.hits else 0 for one in found]
    return {
        "hit@1": share([at == 1 for at in first]),
        "hit@5": share([0 < at <= 5 for at in first]),
        "mrr": round(float(np.mean([1 / at if at else 0.0 for at in first])), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--limit", type=int, default=400, help="questions, drawn by the seed")
    parser.add_argument("--embedder", help="as FOLIO_EMBEDDER")
    parser.add_argument("--ranker", help="as FOLIO_RERANKER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    articles, asked = read(options.file)
    asked = random.Random(options.seed).sample(asked, min(options.limit, len(asked)))
    embedder = make_embedder(options.embedder)
    ranker = load_ranker(options.ranker, embedder)
    control = control_of(embedder)
    figures: dict[str, Any] = {
        "command": f"python -m eval.reader.ranking.evaluate {options.file.name} --limit {options.limit}",
        "seed": options.seed,
        "ranker": ranker.name,
        "embedder": embedder.fingerprint,
        "closed": {
            "ranker": share(list(closed(articles, asked, ranker.score))),
            "control": share(list(closed(articles, asked, control))),
        },
    }
    print(json.dumps(figures), flush=True)
    with tempfile.TemporaryDirectory() as folder, opened(folder, articles, options.embedder, options.ranker) as library:
        plain = [search(library, articles, gold) for gold in asked]
        again = [search(library, articles, gold, rerank=True) for gold in asked]
    figures["search"] = {"hybrid": places(plain), "reranked": places(again)}
    best: dict[str, list[bool]] = {"ranker": [], "control": []}
    refused: dict[str, list[bool]] = {"refused": [], "refused_without_answer": []}
    for gold, found in zip(asked, plain, strict=True):
        for name, score in (("ranker", ranker.score), ("control", control)):
            scores = score(gold.question, found.sentences, found.contexts)
            best[name].append(found.right[int(np.argmax(scores))])
        for name, one in (("refused", found), ("refused_without_answer", without_answer(found))):
            scores = ranker.score(gold.question, one.sentences, one.contexts)
            refused[name].append(bool(scores.max(initial=0) < ranker.refuse_below(gold.question)))
    figures["open"] = {name: share(right) for name, right in (best | refused).items()}
    print(json.dumps(figures, indent=1), flush=True)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
