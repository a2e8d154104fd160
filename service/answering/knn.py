"""The engine's model as a kNN language model: its datastores, and sequences decoded with them.

A sequence is a session of the engine's own pages (``service.engine.drafting.sessions``), so that guesses are taken
back by cutting it. It runs beside the engine's requests: the model's part in the engine's thread, the search outside.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from drafters.sampling.choice import choose
from retrieval.iterative.strides import Experience
from retrieval.knn.decoding import Choose, KnnDecoder, KnnOptions
from retrieval.knn.search import Search
from retrieval.knn.store import StoreBuilder, StoreIdentity, windows
from retrieval.types import DocumentKey
from service.engine.block_manager import OutOfPages
from service.engine.detokenizer import Detokenizer
from service.engine.drafting.sessions import PagedDraftModel, PagedSession, SessionClosed
from service.engine.request import FinishReason, Generation, SamplingParams, TokenOutput
from service.engine.runner.cuda_graphs import GraphedRunner
from service.engine.runner.hidden_states import HiddenStates
from service.engine.runner.model_runner import ModelRunner
from service.errors import Busy, InvalidRequest, PromptTooLong

if TYPE_CHECKING:
    from service.engine.async_engine import AsyncEngine
    from service.engine.engine import Engine


@dataclass(frozen=True)
class KnnRequest:
    """The datastore of a request, and how it is used."""

    search: Search
    options: KnnOptions
    documents_behind: int = 0
    """documents that came after the datastore was made"""
    experience: Experience | None = None
    """of the requests before, in this datastore and way"""


class KnnModel:
    """One engine's model with its hidden states. Touch it in the engine's thread alone."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        runner = engine.runner
        if isinstance(runner, GraphedRunner):  # a replayed graph shows no hidden states
            runner = ModelRunner(runner.model, runner.pool, runner.backend)
        chunk = engine.config.max_step_tokens
        self.paged = PagedDraftModel(runner, engine.lent, engine.loaded.vocab_size, engine.salt, chunk)
        self.hidden = HiddenStates(engine.loaded.model)

    def identity(self, key_type: str = "bfloat16") -> StoreIdentity:
        """What a datastore of this model depends on. Error: InvalidRequest, for a model without tokenizer."""
        loaded = self.engine.loaded
        if loaded.tokenizer_fingerprint is None:
            raise InvalidRequest(f"The model {loaded.name!r} has no tokenizer to read documents with.", param="model")
        return StoreIdentity(
            loaded.fingerprint, loaded.tokenizer_fingerprint, self.hidden.dim, loaded.vocab_size, key_type
        )

    def encode(self, text: str) -> list[int]:
        """A document's tokens, behind the token that begins a text where the model has one."""
        tokenizer = self.engine.tokenizer
        start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        return start + list(tokenizer.encode(text, add_special_tokens=False))

    def decoder(self, prompt_ids: Sequence[int], params: SamplingParams, request: KnnRequest) -> KnnSequence:
        """Read all of the prompt but its last token. Errors: PromptTooLong, Busy, DatastoreMismatch."""
        identity = self.identity()
        request.search.store.check_model(identity.model, identity.tokenizer, identity.dim)
        return KnnSequence(self, prompt_ids, params, request)


def build(
    model: KnnModel,
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
    shape = builder.identity
    for key, text in documents:
        ids = model.encode(text)
        for start, done, end in windows(len(ids) - 1, builder.tokens_read(key), shape.window, shape.overlap):
            if entries is not None and builder.entries >= entries:
                return True
            if time.monotonic() >= until:
                builder.commit()
                return False
            keys = model.hidden.of_tokens(model.paged, ids[start:end])[done - start :]
            builder.add(key, keys, np.array(ids[done + 1 : end + 1]))
    return True


class KnnSequence:
    """One request over a session of pages. ``close`` gives the pages back."""

    def __init__(self, model: KnnModel, prompt_ids: Sequence[int], params: SamplingParams, request: KnnRequest) -> None:
        engine = model.engine
        if len(prompt_ids) + params.max_tokens > engine.max_model_len:
            raise PromptTooLong(
                f"The prompt has {len(prompt_ids)} tokens and asks for {params.max_tokens} more; "
                f"the model holds {engine.max_model_len} tokens in all.",
                param="prompt",
            )
        self._hidden = model.hidden
        self._params = params
        self._stops = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            self._stops |= engine.loaded.eos_ids
        self._detokenizer = Detokenizer(engine.tokenizer, params.stop) if engine.tokenizer is not None else None
        self._began = time.perf_counter()
        self._first: float | None = None
        self._prompt = len(prompt_ids)
        self._behind = request.documents_behind
        try:
            self._session: PagedSession = model.paged.open(prompt_ids[:-1])
        except OutOfPages as error:
            raise _no_room() from error
        self.decoder = KnnDecoder(
            self, request.search, chooser(params), request.options, prompt_ids[-1], request.experience
        )
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    @property
    def length(self) -> int:
        return self._session.length

    def step(self, token: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``retrieval.knn.decoding.LanguageModel``."""
        logits = self._session.advance([token])[0]
        return torch.log_softmax(logits.double(), -1).cpu().numpy(), self._hidden.latest()[0]

    def truncate(self, length: int) -> None:
        self._session.truncate(length)

    def draft(self) -> None:
        """The model's part of a round. Error: Busy, where other requests need its pages."""
        try:
            self.decoder.draft(self._params.max_tokens - len(self.token_ids), self._stops)
        except (SessionClosed, OutOfPages) as error:
            raise _no_room() from error

    def settle(self) -> TokenOutput:
        """What the round brought."""
        try:
            tokens = self.decoder.settle()
        except SessionClosed as error:
            raise _no_room() from error
        self._first = self._first or time.perf_counter()
        kept: list[int] = []
        text = ""
        for token in tokens:
            kept.append(token)
            self.token_ids.append(token)
            if token in self._stops:
                self.finish_reason = FinishReason.STOP
            elif len(self.token_ids) == self._params.max_tokens:
                self.finish_reason = FinishReason.LENGTH
            if self._detokenizer is not None:
                text += self._detokenizer.push([token], last=self.finish_reason is not None)
                if self._detokenizer.stopped:
                    self.finish_reason = FinishReason.STOP
            if self.finish_reason is not None:
                break
        output = TokenOutput("knn", kept, text)
        if self.finish_reason is not None:
            output.finished, output.finish_reason = True, self.finish_reason.value
            output.stats = self.stats()
        return output

    def stats(self) -> dict[str, Any]:
        """Figures of the request, those of its look-ups under ``knn``."""
        seconds = time.perf_counter() - (self._first or self._began)
        return {
            "prompt_tokens": self._prompt,
            "output_tokens": len(self.token_ids),
            "ttft_s": self._first - self._began if self._first else None,
            "decode_tokens_per_s": (len(self.token_ids) - 1) / seconds if len(self.token_ids) > 1 else None,
            "knn": {**self.decoder.stats.as_dict(), "documents_behind": self._behind},
        }

    def close(self) -> None:
        self._session.close()


def generate(model: KnnModel, prompt_ids: Sequence[int], params: SamplingParams, request: KnnRequest) -> Generation:
    """Decode one prompt to its end, in this thread."""
    sequence = model.decoder(prompt_ids, params, request)
    text = ""
    try:
        while sequence.finish_reason is None:
            sequence.draft()
            sequence.decoder.verify()
            text += sequence.settle().text
        return Generation(sequence.token_ids, text, sequence.finish_reason.value, sequence.stats())
    finally:
        sequence.close()


async def stream(
    engine: AsyncEngine,
    model: KnnModel,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    request: KnnRequest,
) -> AsyncGenerator[TokenOutput, None]:
    """Decode one prompt beside the engine's other requests, round by round; every token given is verified."""
    sequence: KnnSequence = await engine.run(lambda _: model.decoder(prompt_ids, params, request))
    try:
        while True:
            await engine.run(lambda _: sequence.draft())
            await asyncio.to_thread(sequence.decoder.verify)
            output: TokenOutput = await engine.run(lambda _: sequence.settle())
            yield output
            if output.finished:
                return
    finally:
        await asyncio.shield(engine.run(lambda _: sequence.close()))


def chooser(params: SamplingParams) -> Choose:
    """The engine's choice of a token, keyed by seed and position, of one row of log-probabilities."""
    if params.temperature == 0:
        return lambda log_p, _position: int(log_p.argmax())
    seed = torch.tensor([params.seed])

    def sampled(log_p: np.ndarray, position: int) -> int:
        row = torch.from_numpy(log_p)[None]
        return int(choose(row, params.temperature, params.top_k, params.top_p, seed, torch.tensor([position])))

    return sampled


def _no_room() -> Busy:
    return Busy("There is no room for the KV of this kNN request beside the others.", hint="Try again later.")
