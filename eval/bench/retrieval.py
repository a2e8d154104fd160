"""How well search finds the paragraph that answers a question, beside bm25s and the encoder alone.

The data are of SQuAD's format. Each paragraph is a document of its own, under a name that tells nothing; a question's
right document is its paragraph. The articles of one half served to choose weights, and the figures are of the other.
The baselines rank the same paragraphs, and naive chunks of 200 words of whole articles, where a chunk is right that
holds the answer's first character.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
from typer import Option

from eval.bench.base import BenchOptions, Figures, bench
from retrieval.embedding.embedder import make_embedder
from retrieval.embedding.encoding import Embedder
from retrieval.library import Library
from retrieval.parsing.chunking import ChunkingOptions
from retrieval.types import Mode, Upload

DEPTH = 20
WORDS = 200
CHARACTERS = 400
"""Words of a naive chunk; characters of one of a text without spaces."""
STEMMERS = {"ar": "arabic", "de": "german", "en": "english", "es": "spanish"}
STOP_WORDS = {"de", "en", "es"}
"""languages for which bm25s knows stop words by their code"""


class Half(StrEnum):
    FIRST = "first"
    SECOND = "second"
    BOTH = "both"


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Search by mode beside bm25s and the encoder alone: hit@1, hit@5, MRR@10."""

    data: Annotated[tuple[Path, ...], Option(help="Questions, in SQuAD's format (xquad.en.json); may be repeated.")]
    half: Annotated[Half, Option(help="Articles whose questions are asked.")] = Half.SECOND
    embedder: Annotated[str, Option(help="Embedding model.")] = "minilm"
    tokens: Annotated[int | None, Option(min=8, help="Most of a chunk; by default the library's own.")] = None
    baselines: Annotated[bool, Option(help="Measure bm25s and the encoder alone, too.")] = True


@dataclass(frozen=True)
class Paragraph:
    article: int
    text: str


@dataclass(frozen=True)
class Question:
    """``paragraph`` by its place among all; ``at`` is the answer's first character there."""

    text: str
    paragraph: int
    at: int


def run(options: Options) -> Figures:
    """One table a file: shares in percent with standard errors, over all paragraphs of the file."""
    embedder = make_embedder(options.embedder)
    return {
        **options.told("half", "embedder", "tokens"),
        "rows": [row for path in options.data for row in _measured(path, options, embedder)],
    }


def _measured(path: Path, options: Options, embedder: Embedder) -> list[dict[str, Any]]:
    language = path.stem.rpartition(".")[2]
    paragraphs, questions = read(path, options.half)
    asked = [question.text for question in questions]
    gold = [{question.paragraph} for question in questions]
    rows = []

    def put(search: str, found: Sequence[Sequence[int]], right: Sequence[set[int]]) -> None:
        rows.append({"data": path.name, "search": search, **figures(found, right)})

    chunking = ChunkingOptions(max_tokens=options.tokens) if options.tokens else ChunkingOptions()
    with tempfile.TemporaryDirectory() as home, Library.open(home, embedder=embedder, chunking=chunking) as library:
        uploads = [Upload(f"{number:05d}.txt", paragraph.text.encode()) for number, paragraph in enumerate(paragraphs)]
        library.ingest(uploads)
        for mode in get_args(Mode):
            put(mode, [_searched(library, question, mode) for question in asked], gold)
    if not options.baselines:
        return rows
    texts = [paragraph.text for paragraph in paragraphs]
    chunks, holding = naive_chunks(paragraphs)
    chunk_texts = [text for text, _ in chunks]
    chunk_gold = [holding(question) for question in questions]
    put("bm25s, paragraphs", _best(bm25s_scores(texts, asked, language)), gold)
    put("encoder, paragraphs", _best(_cosines(embedder, texts, asked)), gold)
    put("bm25s, naive chunks", _best(bm25s_scores(chunk_texts, asked, language)), chunk_gold)
    put("encoder, naive chunks", _best(_cosines(embedder, chunk_texts, asked)), chunk_gold)
    return rows


def read(path: Path, half: Half) -> tuple[list[Paragraph], list[Question]]:
    """All paragraphs; the questions about one half of the articles."""
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    middle = len(articles) // 2
    kept = range(middle if half is Half.SECOND else 0, middle if half is Half.FIRST else len(articles))
    paragraphs: list[Paragraph] = []
    questions: list[Question] = []
    for number, article in enumerate(articles):
        for paragraph in article["paragraphs"]:
            if number in kept:
                questions += [
                    Question(asked["question"], len(paragraphs), asked["answers"][0]["answer_start"])
                    for asked in paragraph["qas"]
                ]
            paragraphs.append(Paragraph(number, paragraph["context"]))
    return paragraphs, questions


def naive_chunks(
    paragraphs: Sequence[Paragraph],
) -> tuple[list[tuple[str, int]], Callable[[Question], set[int]]]:
    """(text, article) of each chunk, and which of them holds the answer to a question."""
    starts: list[int] = []
    texts: dict[int, str] = {}
    for paragraph in paragraphs:
        before = texts.get(paragraph.article, "")
        starts.append(len(before))
        texts[paragraph.article] = f"{before}{paragraph.text}\n\n"
    chunks: list[tuple[str, int]] = []
    spans: list[tuple[int, int, int]] = []
    for article, text in texts.items():
        words = [at for at in range(len(text)) if not text[at].isspace() and (at == 0 or text[at - 1].isspace())]
        cuts = words[::WORDS] if len(text) < 20 * len(words) else list(range(0, len(text), CHARACTERS))
        for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
            chunks.append((text[start:end], article))
            spans.append((article, start, end))

    def holding(question: Question) -> set[int]:
        article, at = paragraphs[question.paragraph].article, starts[question.paragraph] + question.at
        return {row for row, (other, start, end) in enumerate(spans) if other == article and start <= at < end}

    return chunks, holding


def figures(found: Sequence[Sequence[int]], right: Sequence[set[int]]) -> dict[str, Any]:
    """Percent: hit@1 and hit@5 with their standard errors, and MRR@10."""
    ranks = [
        next((at for at, one in enumerate(ids) if one in gold), DEPTH) for ids, gold in zip(found, right, strict=True)
    ]
    made: dict[str, Any] = {"n": len(ranks)}
    for depth in (1, 5):
        share = sum(rank < depth for rank in ranks) / len(ranks)
        made[f"hit@{depth}"] = 100 * share
        made[f"se@{depth}"] = 100 * (share * (1 - share) / len(ranks)) ** 0.5
    made["mrr@10"] = 100 * sum(1 / (rank + 1) for rank in ranks if rank < 10) / len(ranks)
    return made


def bm25s_scores(texts: Sequence[str], asked: Sequence[str], language: str) -> np.ndarray:
    """float32[asked, texts] of bm25s with its own tokenizer, and the stop words and stemmer that it has for them."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer(STEMMERS[language]) if language in STEMMERS else None
    stop_words: Any = language if language in STOP_WORDS else []
    told: dict[str, Any] = {"stopwords": stop_words, "stemmer": stemmer, "show_progress": False}
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), **told), show_progress=False)
    queries = bm25s.tokenize(list(asked), return_ids=False, **told)
    return np.stack([index.get_scores(words) if words else np.zeros(len(texts), np.float32) for words in queries])


def _searched(library: Library, question: str, mode: Mode) -> list[int]:
    """Paragraphs by falling score of their best chunk."""
    hits = library.search(question, DEPTH, mode=mode).hits
    return list(dict.fromkeys(int(hit.name.partition(".")[0]) for hit in hits))


def _cosines(embedder: Embedder, texts: Sequence[str], asked: Sequence[str]) -> np.ndarray:
    return embedder.encode_queries(asked) @ embedder.encode_documents(texts).T


def _best(scores: np.ndarray) -> list[list[int]]:
    found: list[list[int]] = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH].tolist()
    return found


command = bench(Options, run, "retrieval")
