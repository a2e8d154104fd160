"""BERT sentence encoders without padding: all tokens of a batch in one matrix, whatever the texts' lengths.

sentence-transformers pads every text of a batch to the longest, and for ten questions of ten words spends as long in
Python as in arithmetic. Here the rows of a batch are its real tokens alone (as in "unpadded BERT", Zeng et al. 2022,
arXiv 2208.08124); only attention, a small part of the work, sees them as a rectangle. The numbers are the model's own
in float32: tests hold them to sentence-transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

TOKENS_AT_ONCE = 4096
"""rows of one pass: more is no faster, and takes memory"""

Words = Callable[[Any], Any]
"""a tensor int64[n] of tokens → float32[n, d], their embeddings"""


def is_plain_bert(folder: Path) -> bool:
    """Whether the model in ``folder`` is a BERT with mean pooling and normalisation, and nothing else but prefixes."""
    config, pooling = _json(folder / "config.json"), _json(folder / "1_Pooling" / "config.json")
    modules = _json(folder / "modules.json") or []
    steps = [str(module["type"]).rpartition(".")[2] for module in modules]
    pooled = {key for key, on in pooling.items() if key.startswith("pooling_mode_") and on is True}
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and steps == ["Transformer", "Pooling", "Normalize"]
        and pooled == {"pooling_mode_mean_tokens"}
        and (folder / "tokenizer.json").is_file()
        and (folder / "model.safetensors").is_file()
    )


@dataclass(frozen=True)
class _Layer:
    """Weights of one layer; query, key and value as one matrix."""

    qkv: tuple[Any, Any]
    out: tuple[Any, Any]
    out_norm: tuple[Any, Any]
    up: tuple[Any, Any]
    down: tuple[Any, Any]
    down_norm: tuple[Any, Any]

    def cast(self, dtype: Any) -> _Layer:
        """But for its norms."""
        products = {name: getattr(self, name) for name in ("qkv", "out", "up", "down")}
        return replace(self, **{name: (a.to(dtype), b.to(dtype)) for name, (a, b) in products.items()})


class Bert:
    """The encoder. Thread-safe.

    Args:
        weights: by BERT's names, float32; but for the embeddings of words, which are ``words``.
        dtype: torch's, of the layers' products; None for float32.
    """

    def __init__(self, weights: Mapping[str, Any], words: Words, heads: int, epsilon: float, dtype: Any = None) -> None:
        self.heads = heads
        self.epsilon = epsilon
        self._words = words
        self._dtype = dtype
        embedding = "embeddings."
        self._positions = weights[f"{embedding}position_embeddings.weight"]
        self._types = weights[f"{embedding}token_type_embeddings.weight"]
        self._norm = _pair(weights, f"{embedding}LayerNorm")
        layers = {int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer.")}
        self._layers = [_layer(weights, f"encoder.layer.{n}.", dtype) for n in sorted(layers)]

    @classmethod
    def read(
        cls, folder: Path, device: str = "cpu", changes: Mapping[str, Any] | None = None, dtype: Any = None
    ) -> Bert:
        """Of a folder for which ``is_plain_bert`` holds.

        Args:
            changes: what is added to the weights, by their names; a fine-tuned model is these and the folder.
        """
        import torch.nn.functional as F
        from safetensors.torch import load_file

        config = _json(folder / "config.json")
        weights = {
            name.removeprefix("bert."): tensor.float()
            for name, tensor in load_file(folder / "model.safetensors", device).items()
        }
        for name, change in (changes or {}).items():
            weights[name] = weights[name] + change.to(device)
        table = weights["embeddings.word_embeddings.weight"]
        heads, epsilon = int(config["num_attention_heads"]), float(config["layer_norm_eps"])
        return cls(weights, lambda ids: F.embedding(ids, table), heads, epsilon, dtype)

    def in_dtype(self, dtype: Any) -> Bert:
        """The same with its layers' products in another of torch's types; the embeddings of words are shared."""
        other = copy(self)
        other._dtype = dtype
        other._layers = [layer.cast(dtype) for layer in self._layers]
        return other

    def encode(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """float32[len(sequences), d]: the mean over each sequence's tokens, of norm 1. Special tokens are given."""
        import torch

        vectors = np.empty((len(sequences), self._positions.shape[1]), dtype=np.float32)
        with torch.inference_mode():
            for rows in _passes([len(sequence) for sequence in sequences]):
                vectors[rows] = self._encode([sequences[row] for row in rows]).cpu().numpy()
        return vectors

    def states(self, first: Sequence[Sequence[int]], second: Sequence[Sequence[int]] | None = None) -> Any:
        """float32[tokens, d]: the last layer at every token of every text, the texts behind one another.

        second: what follows each of `first` as the second sentence of its text.
        """
        hidden, _ = self._hidden([[*a, *b] for a, b in zip(first, second or [()] * len(first), strict=True)], first)
        return hidden

    def _encode(self, sequences: Sequence[Sequence[int]]) -> Any:
        import torch.nn.functional as F

        hidden, rectangle = self._hidden(sequences, sequences)
        sums = rectangle.padded(hidden).view(rectangle.texts, rectangle.longest, -1).sum(1)
        return F.normalize(sums / rectangle.lengths[:, None].to(hidden.device), dim=1)

    def _hidden(self, sequences: Sequence[Sequence[int]], first: Sequence[Sequence[int]]) -> tuple[Any, _Rectangle]:
        """The last layer at every token of `sequences`, each of which begins with its one of `first`."""
        import torch
        import torch.nn.functional as F

        device = self._positions.device
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        longest = int(lengths.max())
        places = torch.arange(longest).expand(len(sequences), longest)
        real = places < lengths[:, None]
        types = (places >= torch.tensor([len(sequence) for sequence in first])[:, None]).long()
        rectangle = _Rectangle(real.to(device), lengths, longest)
        ids = torch.tensor([token for sequence in sequences for token in sequence]).to(device)
        hidden = self._words(ids) + self._positions[places[real].to(device)]
        hidden = self._normed(hidden + self._types[types[real].to(device)], self._norm)
        for layer in self._layers:
            mixed = self._linear(self._attention(hidden, layer, rectangle), layer.out)
            hidden = self._normed(hidden + mixed, layer.out_norm)
            inner = F.gelu(self._linear(hidden, layer.up))
            hidden = self._normed(hidden + self._linear(inner, layer.down), layer.down_norm)
        return hidden, rectangle

    def _attention(self, hidden: Any, layer: _Layer, rectangle: _Rectangle) -> Any:
        import torch.nn.functional as F

        projected = rectangle.padded(self._linear(hidden, layer.qkv))
        queries, keys, values = projected.view(rectangle.texts, rectangle.longest, 3, self.heads, -1).permute(
            2, 0, 3, 1, 4
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=rectangle.mask)
        return rectangle.packed(mixed.transpose(1, 2).reshape(rectangle.texts * rectangle.longest, -1))

    def _linear(self, hidden: Any, layer: tuple[Any, Any]) -> Any:
        import torch.nn.functional as F

        if self._dtype is None:
            return F.linear(hidden, *layer)
        return F.linear(hidden.to(self._dtype), *layer).float()

    def _normed(self, hidden: Any, norm: tuple[Any, Any]) -> Any:
        import torch.nn.functional as F

        return F.layer_norm(hidden, norm[0].shape, *norm, self.epsilon)


class _Rectangle:
    """Between rows of real tokens and texts × the longest one's places."""

    def __init__(self, real: Any, lengths: Any, longest: int) -> None:
        """real: bool[texts, longest], whether a token is there."""
        full = bool(real.all())
        self.texts = len(lengths)
        self.lengths = lengths
        self.longest = longest
        self.mask = None if full else real[:, None, None, :]
        self._rows = None if full else real.view(-1).nonzero().view(-1)

    def padded(self, rows: Any) -> Any:
        if self._rows is None:
            return rows
        return rows.new_zeros(self.texts * self.longest, rows.shape[1]).index_copy_(0, self._rows, rows)

    def packed(self, places: Any) -> Any:
        return places if self._rows is None else places.index_select(0, self._rows)


def _passes(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Texts of like length together, so many that no pass is over ``TOKENS_AT_ONCE``."""
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if rows and (len(rows) + 1) * lengths[row] > TOKENS_AT_ONCE:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def _layer(weights: Mapping[str, Any], prefix: str, dtype: Any) -> _Layer:
    import torch

    attention = [_pair(weights, f"{prefix}attention.self.{name}", dtype) for name in ("query", "key", "value")]
    return _Layer(
        qkv=(torch.cat([weight for weight, _ in attention]), torch.cat([bias for _, bias in attention])),
        out=_pair(weights, f"{prefix}attention.output.dense", dtype),
        out_norm=_pair(weights, f"{prefix}attention.output.LayerNorm"),
        up=_pair(weights, f"{prefix}intermediate.dense", dtype),
        down=_pair(weights, f"{prefix}output.dense", dtype),
        down_norm=_pair(weights, f"{prefix}output.LayerNorm"),
    )


def _pair(weights: Mapping[str, Any], name: str, dtype: Any = None) -> tuple[Any, Any]:
    pair = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return pair if dtype is None else (pair[0].to(dtype), pair[1].to(dtype))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
