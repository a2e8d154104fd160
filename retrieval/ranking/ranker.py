"""How probable it is that a sentence answers a question.

    ranker = load_ranker(None)
    ranker.score("When was the lamp lit?", ["It was lit in 1871.", "It stands on the mole."])

A scorer reads, `features.lexical` looks, and a logistic model fitted on held questions makes a probability of both.
Scorers: the project's own cross-encoder over MiniLM, which is the default; cosines of any embedding model; a
cross-encoder of the hub's, by name or folder. A question that the scorer does not read is judged by words alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np

from retrieval.analysis.languages import is_english
from retrieval.common.hub import fetch
from retrieval.embedding.embedder import SentenceEmbedder
from retrieval.embedding.encoding import Embedder, cosine_weight, in_passing
from retrieval.errors import UnknownRanker
from retrieval.ranking import cross_encoder
from retrieval.ranking.cross_encoder import CrossEncoder
from retrieval.ranking.features import NAMES, lexical
from retrieval.ranking.reading import cut, likeliest, pieces, runs

MODEL_DIR = Path(__file__).parent / "model"
CALIBRATION = "calibration.json"
DEFAULT = "minilm"
READ_CHARS = 9000
"""of sentences that a scorer reads for one question, about 2,000 tokens; which these are, their words say"""
FOUND_CHARS = 2000
"""of what a search has chosen already: as many right choices, and an answer that begins in half the time"""
USUAL = 45
"""sentences that eight passages have, among which the calibration's questions were asked"""
FEWEST = 5
"""of fewer sentences deviations tell nothing"""
UNREAD = -12.0
"""the logit of a sentence that was not read: never an answer"""


class Scorer(Protocol):
    """Reads sentences. `name` is its entry of the calibration, `columns` what it tells of a sentence."""

    name: str

    @property
    def columns(self) -> tuple[str, ...]: ...

    def knows(self, text: str) -> bool:
        """Whether it is in a language that the scorer reads."""
        ...

    def read(self, question: str, sentences: Sequence[str], contexts: Sequence[str], seen: np.ndarray) -> np.ndarray:
        """float32[n, len(columns)] of at least one sentence.

        Args:
            contexts: the passage in which each sentence stands, less what is not read. seen: its row of
                ``features.lexical``.
        """
        ...


@dataclass(frozen=True)
class Logistic:
    """A probability of what is seen.

    Attributes:
        weights: of the scorer's columns, then of `features.NAMES`.
        refuse_below: an answer whose sentence is less probable is better not given.
        fall: how far the bound falls, in logits, where there are fewer sentences by a factor of e: the best of few is
            less probable than that of many, whether one of them answers or none.
    """

    weights: np.ndarray
    bias: float
    refuse_below: float = 0.0
    fall: float = 0.0

    @classmethod
    def of(cls, fitted: dict[str, Any]) -> Logistic:
        """From an entry of ``CALIBRATION``."""
        return cls(
            np.array(fitted["weights"], np.float64),
            float(fitted["bias"]),
            float(fitted["refuse_below"]),
            fitted["fall"],
        )

    def bound(self, among: int) -> float:
        """`refuse_below` for the best of so many sentences."""
        if not self.refuse_below:
            return 0.0
        odds = self.refuse_below / (1 - self.refuse_below) * (min(among, USUAL) / USUAL) ** self.fall
        return odds / (1 + odds)

    def logits(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weights + self.bias


class SentenceRanker:
    """Scores sentences, and passages by the best of theirs. Thread-safe."""

    def __init__(self, scorer: Scorer, chosen: Logistic, words: Logistic) -> None:
        """chosen: over what the scorer read; words: over `features.lexical` alone, to choose what is read."""
        self._scorer = scorer
        self._chosen = chosen
        self._words = words

    @property
    def name(self) -> str:
        return self._scorer.name

    def knows(self, *texts: str) -> bool:
        """Whether it reads all of them; of the rest it is never sure."""
        return all(map(self._scorer.knows, texts))

    def refuse_below(self, question: str, among: int = USUAL) -> float:
        """An answer to the question whose sentence, of so many, scores less is better not given."""
        return (self._chosen if self._scorer.knows(question) else self._words).bound(among)

    def score(
        self,
        question: str,
        sentences: Sequence[str],
        contexts: Sequence[str] | None = None,
        room: int = READ_CHARS,
    ) -> np.ndarray:
        """float32[n]: the probability that each sentence answers the question.

        Args:
            contexts: the passage in which each sentence stands, the same object or text for those of one passage;
                without it each stands alone.
            room: characters that are read: of the sentences that share most with the question, where there are more.
                One that is not read is as good as impossible.
        """
        if not sentences:
            return np.zeros(0, dtype=np.float32)
        around = list(contexts) if contexts is not None else list(sentences)
        seen = lexical(question, sentences, contexts)
        if not self._scorer.knows(question):
            return _probabilities(self._words.logits(seen))
        read, features = looked_at(self._scorer, self._words, question, sentences, around, seen, room)
        logits = np.full(len(sentences), UNREAD, dtype=np.float64)
        logits[read] = self._chosen.logits(features)
        return _probabilities(logits)

    def passages(self, question: str, texts: Sequence[Sequence[str]], contexts: Sequence[str]) -> np.ndarray:
        """float32[n]: of each passage, given as its sentences and as a whole, that of its best sentence."""
        sentences = [sentence for passage in texts for sentence in passage]
        around = [context for passage, context in zip(texts, contexts, strict=True) for _ in passage]
        scores = self.score(question, sentences, around)
        ends = np.cumsum([len(passage) for passage in texts], dtype=int)
        best = [max(scores[end - len(p) : end], default=0.0) for end, p in zip(ends, texts, strict=True)]
        return np.array(best, dtype=np.float32)


def looked_at(
    scorer: Scorer,
    words: Logistic,
    question: str,
    sentences: Sequence[str],
    contexts: Sequence[str],
    seen: np.ndarray,
    room: int,
) -> tuple[list[int], np.ndarray]:
    """Numbers of the sentences that are read, and all that is then known of them.

    Args:
        words: chooses what is read. seen: rows of ``features.lexical``. room: characters.
    """
    read = likeliest(sentences, contexts, words.logits(seen), room)
    columns = scorer.read(question, [sentences[n] for n in read], cut(sentences, contexts, read), seen[read])
    return read, np.concatenate([columns, seen[read]], axis=1)


class PassageScorer:
    """The cross-encoder of the package; and of the sentences that it finds best, MiniLM's own cosine."""

    name = "minilm"
    columns: tuple[str, ...] = ("logit", "cosine")
    COMPARED = 6
    """sentences whose cosine is taken; of the others it is 0, and none of them is chosen"""

    def __init__(self, encoder: CrossEncoder, embedder: Embedder) -> None:
        self._encoder = encoder
        self._embedder = in_passing(embedder)

    def knows(self, text: str) -> bool:
        return is_english(text)

    def read(self, question: str, sentences: Sequence[str], contexts: Sequence[str], seen: np.ndarray) -> np.ndarray:
        windows = []
        for first, last in runs(contexts):
            found = pieces(contexts[first], sentences[first:last])
            tokens = self._encoder.tokens([text for text, _ in found])
            numbered = [None if n is None else first + n for _, n in found]
            windows += cross_encoder.windows(list(zip(tokens, numbered, strict=True)))
        logits = self._encoder.scores(question, windows)
        columns = np.array([[logits.get(n, UNREAD), 0.0] for n in range(len(sentences))], dtype=np.float32)
        best = np.argsort(-(columns[:, 0] + 2 * seen[:, NAMES.index("shared")]))[: self.COMPARED]
        vectors = self._embedder.encode_queries([question, *(sentences[n] for n in best)])
        columns[best, 1] = vectors[1:] @ vectors[0]
        return columns


class CosineScorer:
    """Any embedding model: how near question and sentence are, absolutely and among the sentences at hand."""

    name = "cosine"
    columns: tuple[str, ...] = ("nearer", "nearer_near", "near")

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = in_passing(embedder)

    def knows(self, text: str) -> bool:
        return True

    def read(self, question: str, sentences: Sequence[str], contexts: Sequence[str], seen: np.ndarray) -> np.ndarray:
        near = [
            s if not n or contexts[n] != contexts[n - 1] else f"{sentences[n - 1]} {s}" for n, s in enumerate(sentences)
        ]
        texts = list(dict.fromkeys([*sentences, *near]))
        vectors = dict(zip(texts, self._embedder.encode_documents(texts), strict=True))
        (asked,) = self._embedder.encode_queries([question])
        alone, after = (np.array([float(vectors[text] @ asked) for text in side]) for side in (sentences, near))
        weight = cosine_weight(self._embedder, question)
        scaled = weight.factor * (np.maximum(alone, after) - weight.unrelated)
        return np.stack([_standard(alone), _standard(after), scaled], axis=1).astype(np.float32)


class PairScorer:
    """A cross-encoder that sentence-transformers loads, which reads question and sentence."""

    name = "pairs"
    columns: tuple[str, ...] = ("logit",)

    def __init__(self, model: Any) -> None:
        self._model = model

    def knows(self, text: str) -> bool:
        return True

    def read(self, question: str, sentences: Sequence[str], contexts: Sequence[str], seen: np.ndarray) -> np.ndarray:
        from torch.nn import Identity

        scores = self._model.predict(
            [(question, s) for s in sentences], activation_fn=Identity(), show_progress_bar=False
        )
        return np.asarray(scores, dtype=np.float32).reshape(len(sentences), 1)


def suiting(embedder: Embedder | None) -> str:
    """The name of the ranker that suits an embedder."""
    minilm = embedder is None or (isinstance(embedder, SentenceEmbedder) and embedder.is_minilm)
    return DEFAULT if minilm else CosineScorer.name


def load_ranker(name: str | None, embedder: Embedder | None = None) -> SentenceRanker:
    """The ranker of a name, loaded.

    Args:
        name: None for what suits the embedder: the packaged one (``minilm``) beside MiniLM or no embedder, else
            ``cosine``, which needs one; or a folder or hub id of a cross-encoder of sentence-transformers.
    Error: UnknownRanker.
    """
    kind = name or suiting(embedder)
    if kind == CosineScorer.name:
        if embedder is None:
            raise UnknownRanker("the ranker 'cosine' needs the embedding model of a library")
        return _calibrated(CosineScorer(embedder))
    if kind == DEFAULT:
        own = embedder if isinstance(embedder, SentenceEmbedder) and embedder.is_minilm else SentenceEmbedder()
        return _calibrated(PassageScorer(CrossEncoder(own.folder, MODEL_DIR), own))
    return _uncalibrated(PairScorer(_load_pairs(find_ranker(kind))))


def find_ranker(name: str) -> Path:
    """The folder of a ranker that is named, fetched from the hub where it is none's here. Error: UnknownRanker."""
    if name in (DEFAULT, CosineScorer.name):
        return MODEL_DIR
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetched(name)
    architectures = _json(folder / "config.json").get("architectures") or [""]
    if not str(architectures[0]).endswith("ForSequenceClassification"):
        raise UnknownRanker(
            f"{name} is no cross-encoder: its config.json names no sequence classification; give one that "
            f"sentence-transformers' CrossEncoder loads, or {DEFAULT!r}"
        )
    return folder


def _fetched(name: str) -> Path:
    if Path(name).is_absolute():
        raise UnknownRanker(f"there is no folder {name}; give a folder, a hub id, or {DEFAULT!r}")
    try:
        return fetch(name)
    except Exception as error:
        raise UnknownRanker(
            f"the ranker {name!r} is neither a folder nor can it be fetched from the hub; use {DEFAULT!r} for the "
            "packaged one"
        ) from error


def _load_pairs(folder: Path) -> Any:
    import sentence_transformers

    model = sentence_transformers.CrossEncoder(
        str(folder), device="cpu", local_files_only=True, trust_remote_code=False
    )
    if model.num_labels != 1:
        raise UnknownRanker(f"{folder.name} gives {model.num_labels} scores of a pair and not one")
    return model


def _calibrated(scorer: Scorer) -> SentenceRanker:
    """With the models that eval/reader/ranking/calibrate.py fitted."""
    fitted = _json(MODEL_DIR / CALIBRATION)
    own = fitted[scorer.name]
    names = [*scorer.columns, *NAMES]
    if own["names"] != names or fitted["words"]["names"] != list(NAMES):
        raise UnknownRanker(f"{CALIBRATION} was fitted for other features; reinstall folio-serve")
    return SentenceRanker(scorer, Logistic.of(own), Logistic.of(fitted["words"]))


def _uncalibrated(scorer: Scorer) -> SentenceRanker:
    """A model's own logit is taken for the probability's; nothing is known of where it should refuse."""
    alone = Logistic(np.eye(1, len(scorer.columns) + len(NAMES))[0], 0.0)
    return SentenceRanker(scorer, alone, Logistic.of(_json(MODEL_DIR / CALIBRATION)["words"]))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _probabilities(logits: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def _standard(column: np.ndarray) -> np.ndarray:
    """In standard deviations from the mean, since the cosines of one model crowd where another's spread; as among
    `USUAL` sentences: the largest of few numbers lies nearer to their mean."""
    deviations = (column - column.mean()) / (column.std() + 1e-6)
    return deviations * (_largest_of(USUAL) / _largest_of(max(len(column), FEWEST)))


def _largest_of(count: int) -> float:
    """About where the largest of so many normal numbers lies, in standard deviations (Blom 1958)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))
