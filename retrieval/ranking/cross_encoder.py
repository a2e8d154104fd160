"""Reads question and passage together, and scores every sentence of the passage at once.

The usual cross-encoder reads the question once more for each candidate. Here a passage is read whole, behind the
question, and a sentence's score is made of the mean of its own tokens' last states: a sentence that says "it" is read
where "it" is explained, and eight passages cost eight rows and not sixty.

The weights are those of the packaged MiniLM plus low-rank changes (LoRA, Hu et al. 2021, arXiv 2106.09685).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from retrieval.common.openmp import release_team
from retrieval.common.processor import has_bfloat16
from retrieval.embedding.bert import Bert

WEIGHTS = "cross_encoder.safetensors"
QUESTION_TOKENS = 64
"""read of a question; the rest is cut"""
WINDOW_TOKENS = 256
"""of a passage, read at once"""
SENTENCE_TOKENS = 128
"""read of a sentence; the rest is cut"""
ROWS_AT_ONCE = 1536
"""tokens of one pass"""
KEPT = 256
"""readings that are kept: to rerank, to refuse and to choose what is quoted, the same passages are read"""


@dataclass(frozen=True)
class Window:
    """Pieces of a passage that are read together.

    Attributes:
        tokens: of each piece, without special tokens.
        sentences: the number of the sentence that each piece is, None for text between sentences.
    """

    tokens: tuple[tuple[int, ...], ...]
    sentences: tuple[int | None, ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.tokens))

    @property
    def numbers(self) -> list[int]:
        """Of its sentences that have a token."""
        return [n for piece, n in zip(self.tokens, self.sentences, strict=True) if n is not None and piece]


Reading = tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[bool, ...]]
"""The question's part of a row, the pieces of a window, and which of them are sentences."""


class CrossEncoder:
    """MiniLM with the changes of a folder. Thread-safe."""

    def __init__(self, minilm: Path, folder: Path, bfloat16: bool | None = None) -> None:
        """minilm: the encoder's folder; folder: that of ``WEIGHTS``, made by eval/reader/ranking/train.py; bfloat16:
        how layers are multiplied, None for where the processor does it itself."""
        import torch
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        tensors = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
        self._head = tensors.pop("head.weight"), tensors.pop("head.bias")
        fast = has_bfloat16() if bfloat16 is None else bfloat16
        self._bert = Bert.read(minilm, changes=low_rank_changes(tensors), dtype=torch.bfloat16 if fast else None)
        self._tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._kept: OrderedDict[Reading, tuple[float, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def tokens(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Of each text, without special tokens."""
        return [tuple(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def scores(self, question: str, windows: Sequence[Window]) -> dict[int, float]:
        """The logit of each sentence of the windows, by its number; its best where it stands in several."""
        (asked,) = self.tokens([question])
        head = tuple(first(asked))
        readings = [(head, window.tokens, tuple(n is not None for n in window.sentences)) for window in windows]
        with self._lock:
            known = {reading: self._kept[reading] for reading in readings if reading in self._kept}
        known |= self._read(head, {r: w for r, w in zip(readings, windows, strict=True) if r not in known})
        with self._lock:
            for reading in readings:
                self._kept[reading] = known[reading]
                self._kept.move_to_end(reading)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        found: dict[int, float] = {}
        for reading, window in zip(readings, windows, strict=True):
            for number, logit in zip(window.numbers, known[reading], strict=True):
                found[number] = max(logit, found.get(number, logit))
        return found

    def _read(self, head: Sequence[int], windows: Mapping[Reading, Window]) -> dict[Reading, tuple[float, ...]]:
        """The logits of each window's sentences."""
        import torch

        found: dict[Reading, tuple[float, ...]] = {}
        try:
            with torch.inference_mode():
                for batch in _batches(list(windows.items()), len(head)):
                    rows = [[*_joined(window), SEP] for _, window in batch]
                    states = self._bert.states([list(head)] * len(batch), rows)
                    means = _means(states, [window for _, window in batch], len(head))
                    logits = iter((means @ self._head[0] + self._head[1]).tolist())
                    found |= {reading: tuple(islice(logits, len(window.numbers))) for reading, window in batch}
        finally:
            release_team()
        return found


CLS, SEP = 101, 102


def first(question: Sequence[int]) -> list[int]:
    """The part of a row before the passage."""
    return [CLS, *question[:QUESTION_TOKENS], SEP]


def windows(pieces: Sequence[tuple[Sequence[int], int | None]]) -> list[Window]:
    """A passage cut where it is longer than a window; pieces are its tokens and the number of the sentence they are."""
    found: list[Window] = []
    tokens: list[tuple[int, ...]] = []
    sentences: list[int | None] = []
    for piece, sentence in pieces:
        cut = tuple(piece[:SENTENCE_TOKENS])
        if tokens and sum(map(len, tokens)) + len(cut) > WINDOW_TOKENS:
            found.append(Window(tuple(tokens), tuple(sentences)))
            tokens, sentences = tokens[-1:], [None]  # the sentence before says what "it" is
        tokens.append(cut)
        sentences.append(sentence)
    return [*found, Window(tuple(tokens), tuple(sentences))] if tokens else found


def low_rank_changes(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The change of each weight: ``NAME.up @ NAME.down``, or NAME's own tensor."""
    names = {name.removesuffix(".up") for name in tensors if name.endswith(".up")}
    changes = {name: tensors[f"{name}.up"] @ tensors[f"{name}.down"] for name in names}
    return changes | {name: tensor for name, tensor in tensors.items() if not name.endswith((".up", ".down"))}


def _joined(window: Window) -> list[int]:
    return [token for piece in window.tokens for token in piece]


def _batches(windows: Sequence[tuple[Reading, Window]], extra: int) -> Iterator[list[tuple[Reading, Window]]]:
    """Windows of like length together."""
    batch: list[tuple[Reading, Window]] = []
    for reading, window in sorted(windows, key=lambda one: one[1].size):
        if batch and (len(batch) + 1) * (window.size + extra + 1) > ROWS_AT_ONCE:
            yield batch
            batch = []
        batch.append((reading, window))
    if batch:
        yield batch


def _means(states: Any, batch: Sequence[Window], lead: int) -> Any:
    """The mean state of each sentence. states: of the windows' rows behind one another."""
    import torch

    rows: list[int] = []
    owners: list[int] = []
    count = at = 0
    for window in batch:
        at += lead
        for piece, sentence in zip(window.tokens, window.sentences, strict=True):
            if sentence is not None and piece:
                rows += range(at, at + len(piece))
                owners += [count] * len(piece)
                count += 1
            at += len(piece)
        at += 1
    owner = torch.tensor(owners, dtype=torch.long)
    sums = states.new_zeros(count, states.shape[1]).index_add_(0, owner, states[rows])
    return sums / owner.bincount(minlength=count)[:, None]
