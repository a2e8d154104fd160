"""What every embedder of this package does around its model: tokens, prefixes, slices, and texts that it cannot read.

A text of which the tokenizer knows too little has no vector: its row is zero, and so is its cosine with every other
text. Otherwise two texts in a script that the model never saw would be the same text to it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from retrieval.common.openmp import release_team

Advance = Callable[[int, int], None]
"""called with (texts done, texts in all)"""

KNOWN_AT_LEAST = 0.5
"""share of a text's tokens that the tokenizer must know; the others stand for nothing"""

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

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> np.ndarray:
        """float32[len(texts), dim], each row of norm 1, or zero for a text that the model cannot read."""

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """float32[len(texts), dim], each row of norm 1, or zero for a text that the model cannot read."""


Model = TypeVar("Model")


class Encoder(ABC, Generic[Model]):
    """Loads its model when it is first used: listing documents must not load torch. Thread-safe."""

    # Texts are embedded longest first in slices of this many: padding stays small and progress can be told.
    _SLICE = 256

    query_prefix = ""
    document_prefix = ""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: Model | None = None

    @property
    @abstractmethod
    def dim(self) -> int: ...

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
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return np.fromiter((start for start, _ in encoding.offsets), dtype=np.int64, count=len(encoding.offsets))

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

    def warm_up(self) -> None:
        """Load the model now rather than at the first question."""
        self.encode_queries(["warm"])

    def _encode(self, texts: Sequence[str], prefix: str) -> np.ndarray:
        prefixed = [prefix + text for text in texts]
        sequences = [self._cut(encoding.ids) for encoding in self._tokenizer.encode_batch(prefixed)]
        read = np.flatnonzero([self._is_known(sequence, prefix) for sequence in sequences])
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        if len(read):
            try:
                vectors[read] = self._embed([prefixed[row] for row in read], [sequences[row] for row in read])
            finally:
                release_team()
        return vectors

    def _is_known(self, sequence: Sequence[int], prefix: str) -> bool:
        own = len(sequence) - SPECIAL_TOKENS - self._length(prefix)
        return own > 0 and own - sequence.count(self._unknown) >= KNOWN_AT_LEAST * own

    def _length(self, prefix: str) -> int:
        return len(self._tokenizer.encode(prefix, add_special_tokens=False).ids) if prefix else 0

    @property
    def _model(self) -> Model:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer, self._unknown = self._read_tokenizer()
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def _cut(self, sequence: list[int]) -> list[int]:
        """Its first tokens that the model reads, and the one that ends every text."""
        return sequence if len(sequence) <= self.max_tokens else sequence[: self.max_tokens - 1] + sequence[-1:]
