"""The engine's model as a kNN language model: what a request brings to be one, and what its datastores are made of.

The rows of a kNN request run in the engine's steps beside the others (`service.engine.mixture`); the datastore is
searched in another thread, and made of sequences that the engine reads in the background (`request.Reading`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from drafters.sampling.choice import choose
from retrieval.iterative.strides import Experience
from retrieval.knn.decoding import Choose, KnnDecoder, KnnOptions
from retrieval.knn.search import Search
from retrieval.knn.store import StoreBuilder, StoreIdentity, windows
from retrieval.types import DocumentKey
from service.answering.prompting.encoding import Encoder
from service.engine.loading.checkpoint import LoadedModel
from service.engine.params import SamplingParams
from service.engine.request import Reading
from service.engine.runner.hidden_states import hidden_size
from service.errors import InvalidRequest

if TYPE_CHECKING:
    from service.engine.async_engine import AsyncEngine


@dataclass(frozen=True)
class KnnRequest:
    """The datastore of a request, and how it is used (`service.engine.mixture.MixtureSource`)."""

    search: Search
    options: KnnOptions
    documents_behind: int = 0
    """documents that came after the datastore was made"""
    experience: Experience | None = None
    """of the requests before, in this datastore and way"""

    def open(self, params: SamplingParams, stops: frozenset[int], loaded: LoadedModel) -> KnnMixture:
        """Errors: DatastoreMismatch, where the datastore is another model's; those of `identity`."""
        model = identity(loaded)
        self.search.store.check_model(model.model, model.tokenizer, model.dim)
        decoder = KnnDecoder(self.search, chooser(params), self.options, params.max_tokens, stops, self.experience)
        return KnnMixture(decoder, self.documents_behind)


class KnnMixture:
    """λ·p_kNN + (1 − λ)·p_LM for one request of the engine (`service.engine.mixture.Mixture`)."""

    def __init__(self, decoder: KnnDecoder, documents_behind: int) -> None:
        self._decoder = decoder
        self._behind = documents_behind

    def guess(self, logits: Tensor, hidden: Tensor, position: int) -> int | None:
        log_p = torch.log_softmax(logits.double(), -1).cpu().numpy()
        return self._decoder.guess(log_p, hidden.float().cpu().numpy(), position)

    def look_up(self) -> None:
        self._decoder.verify()

    def settle(self) -> list[int]:
        return self._decoder.settle()

    def stats(self) -> dict[str, Any]:
        return {"knn": {**self._decoder.stats.as_dict(), "documents_behind": self._behind}}


def identity(loaded: LoadedModel, key_type: str = "bfloat16") -> StoreIdentity:
    """What a datastore of a model depends on.

    Errors: InvalidRequest, for a model without tokenizer; ModelError, for one that shows no hidden states.
    """
    if loaded.tokenizer_fingerprint is None:
        raise InvalidRequest(f"The model {loaded.name!r} has no tokenizer to read documents with.", param="model")
    dim = hidden_size(loaded.model)
    return StoreIdentity(loaded.fingerprint, loaded.tokenizer_fingerprint, dim, loaded.vocab_size, key_type)


def encode(encoder: Encoder, text: str) -> list[int]:
    """A document's tokens, all of them text, behind the token that begins a text where the model has one."""
    first = encoder.tokenizer.bos_token_id
    return [*([] if first is None else [int(first)]), *encoder.text(text)]


def hidden_states(engine: AsyncEngine, token_ids: Sequence[int]) -> np.ndarray:
    """float32[len(token_ids), hidden_size]: read as a sequence of their own, in the background of other requests."""
    states = np.empty((len(token_ids), hidden_size(engine.engine.loaded.model)), dtype=np.float32)

    def keep(start: int, hidden: Tensor) -> None:
        states[start : start + len(hidden)] = hidden.float().cpu().numpy()

    engine.read(token_ids, Reading(on_chunk=keep), attention="dense")
    return states


def build(
    engine: AsyncEngine,
    documents: Iterable[tuple[DocumentKey, str]],
    builder: StoreBuilder,
    entries: int | None = None,
    until: float = float("inf"),
) -> bool:
    """Add documents (key, text) to a datastore, but for what it has of them; True when all is there.

    Args:
        entries: stop at the window that reaches so many.
        until: stop at this time of ``time.monotonic``, keeping what was made.
    """
    shape, encoder = builder.identity, Encoder(engine.engine.tokenizer)
    for key, text in documents:
        ids = encode(encoder, text)
        for start, done, end in windows(len(ids) - 1, builder.tokens_read(key), shape.window, shape.overlap):
            if entries is not None and builder.entries >= entries:
                return True
            if time.monotonic() >= until:
                builder.commit()
                return False
            keys = hidden_states(engine, ids[start:end])[done - start :]
            builder.add(key, keys, np.array(ids[done + 1 : end + 1]))
    return True


def chooser(params: SamplingParams) -> Choose:
    """The engine's choice of a token, keyed by seed and position, of one row of log-probabilities."""
    if params.temperature == 0:
        return lambda log_p, _position: int(log_p.argmax())
    seed = torch.tensor([params.seed])

    def sampled(log_p: np.ndarray, position: int) -> int:
        row = torch.from_numpy(log_p)[None]
        return int(choose(row, params.temperature, params.top_k, params.top_p, seed, torch.tensor([position])))

    return sampled
