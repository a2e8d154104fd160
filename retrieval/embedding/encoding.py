"""What every embedder of this package does around its model: tokens, prefixes, slices, and how far it reads a text.

A model reads the words that its tokenizer has, and guesses at those that it spells out. A text that is spelled letter
by letter, or unknown, has no vector: its row is zero, and so is its cosine with every other text. Otherwise two texts
in a script that the model never saw would be the same text to it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from retrieval.common.openmp import release_team
from retrieval.common.processor import has_bfloat16
from retrieval.embedding.bert import Bert
from retrieval.embedding.tokens import READ_AT_LEAST, Tokens

Advance = Callable[[int, int], None]
"""called with (texts done, texts in all)"""

UNRELATED = (
    "The bridge was closed for repairs until spring.",
    "Add two spoons of sugar to the dough.",
    "Prime numbers have exactly two divisors.",
    "Her brother plays the violin in an orchestra.",
    "Interest rates rose by half a percent.",
    "Penguins keep their eggs warm on their feet.",
    "The printer is out of paper again.",
    "Rome was the capital of an empire.",
    "A vaccine trains the body to know a germ.",
    "He scored in the last minute of the match.",
    "The moon has no air.",
    "Please sign the contract on page four.",
)
"""texts that have nothing to do with one another"""
NARROWEST = 0.05
"""range of cosines that is taken for one"""

LOOKED_AT = 1 << 16
"""Characters of a text that are tokenised: a model reads some hundred tokens of it."""
SPECIAL_TOKENS = 2
"""that an encoder adds to a text: at its start and its end"""


class Embedder(Protocol):
    """What the library needs of an embedding model."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def token_starts(self, text: str) -> np.ndarray:
        """int64[n] offsets of the first character of each token of ``text``."""

    def text(self, ids: Sequence[int]) -> str:
        """The text that tokens of its own stand for. Error: ValueError, for an id that it has not."""

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> np.ndarray:
        """float32[len(texts), dim], each row of norm 1, or zero for a text that the model cannot read."""

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """float32[len(texts), dim], each row of norm 1, or zero for a text that the model cannot read."""


class CosineWeight(NamedTuple):
    """What the cosine of one query counts in hybrid search: ``factor`` · (cosine − ``unrelated``).

    ``unrelated`` is the cosine of texts that have nothing to do with one another.
    """

    factor: float = 1.0
    unrelated: float = 0.0


AS_IT_IS = CosineWeight()


Model = TypeVar("Model")


class Encoder(ABC, Generic[Model]):
    """Loads its model when it is first used: listing documents must not load torch. Thread-safe."""

    # Texts are embedded longest first in slices of this many: padding stays small and progress can be told.
    _SLICE = 256

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: Model | None = None

    @property
    @abstractmethod
    def dim(self) -> int: ...

    @property
    def query_prefix(self) -> str:
        return ""

    @property
    def document_prefix(self) -> str:
        return ""

    @cached_property
    def cosine_range(self) -> tuple[float, float]:
        """Cosines of texts that have nothing to do with one another, and of a question and its answer at best.

        Here as the mean of unrelated texts, and ten standard deviations above: hardly an encoder has a cosine of 0
        for the one and of 1 for the other.
        """
        vectors = self.encode_queries(UNRELATED)
        cosines = (vectors @ vectors.T)[np.triu_indices(len(UNRELATED), 1)]
        mean, deviation = float(cosines.mean()), float(cosines.std())
        return mean, mean + max(10 * deviation, NARROWEST)

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Tokens of a text that the model reads, those that it adds itself included."""

    @abstractmethod
    def _read_tokenizer(self) -> tuple[Any, int | None]:
        """A ``tokenizers.Tokenizer``, and the token of what it does not know."""

    @abstractmethod
    def _load(self) -> Model: ...

    @abstractmethod
    def _embed(self, texts: Sequence[str], sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """float32[len(texts), dim] of norm 1; ``sequences`` are the tokens of the texts, cut at ``max_tokens``."""

    def token_starts(self, text: str) -> np.ndarray:
        """See ``Embedder``."""
        return self.tokens.starts(text)

    def text(self, ids: Sequence[int]) -> str:
        """See ``Embedder``."""
        tokenizer = self.tokens.tokenizer
        known = tokenizer.get_vocab_size()
        if max(ids) >= known:
            raise ValueError(f"there is no token {max(ids)}; the model knows 0 to {known - 1}")
        return str(tokenizer.decode(list(ids)))

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> np.ndarray:
        """See ``Embedder``."""
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        order = np.argsort([-len(text) for text in texts], kind="stable")
        for at in range(0, len(texts), self._SLICE):
            rows = order[at : at + self._SLICE]
            vectors[rows] = self._encode([texts[row] for row in rows], self.document_prefix)
            if advance:
                advance(at + len(rows), len(texts))
        return vectors

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """See ``Embedder``."""
        return self._encode(texts, self.query_prefix)

    def cosine_weight(self, query: str) -> CosineWeight:
        """What a cosine of the query says, by how far the model reads the query."""
        trust = self.tokens.read(query, self.tokens.tokenizer.encode(query, add_special_tokens=False), 0) ** 2
        unrelated, alike = self.cosine_range
        return CosineWeight(trust / (alike - unrelated), unrelated)

    def in_passing(self) -> Self:
        """The same for texts that are compared and kept nowhere: with products in bfloat16 where the processor makes
        those faster."""
        if not (isinstance(self._model, Bert) and has_bfloat16()):
            return self
        import torch

        other = copy(self)
        other._lock = threading.Lock()
        other._loaded = self._model.in_dtype(torch.bfloat16)  # type: ignore[assignment]
        return other

    def warm_up(self) -> None:
        """Load the model now rather than at the first question."""
        _ = self._model  # whether or not it reads the next line's word
        self.encode_queries(["warm"])

    def _encode(self, texts: Sequence[str], prefix: str) -> np.ndarray:
        prefixed = [(prefix + text)[:LOOKED_AT] for text in texts]
        encodings = self.tokens.tokenizer.encode_batch(prefixed)
        read = [
            row
            for row, (text, encoding) in enumerate(zip(prefixed, encodings, strict=True))
            if self.tokens.read(text, encoding, len(prefix)) >= READ_AT_LEAST
        ]
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        if read:
            try:
                vectors[read] = self._embed(
                    [prefixed[row] for row in read], [self._cut(encodings[row].ids) for row in read]
                )
            finally:
                release_team()
        return vectors

    @property
    def _model(self) -> Model:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    @cached_property
    def tokens(self) -> Tokens:
        """What cuts texts into tokens."""
        tokenizer, unknown = self._read_tokenizer()
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return Tokens(tokenizer, unknown)

    def _cut(self, sequence: list[int]) -> list[int]:
        """Its first tokens that the model reads, and the one that ends every text."""
        return sequence if len(sequence) <= self.max_tokens else sequence[: self.max_tokens - 1] + sequence[-1:]


def in_passing(embedder: Embedder) -> Embedder:
    """See ``Encoder.in_passing``; an embedder that is not one is as it is."""
    return embedder.in_passing() if isinstance(embedder, Encoder) else embedder


def cosine_weight(embedder: Embedder, query: str) -> CosineWeight:
    """See ``Encoder.cosine_weight``; of an embedder that is not one, the cosine as it is."""
    return embedder.cosine_weight(query) if isinstance(embedder, Encoder) else AS_IT_IS
