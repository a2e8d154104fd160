"""Tokens from the target's distribution mixed with another one, which is looked up outside the steps."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from service.errors import InvalidRequest

if TYPE_CHECKING:
    from service.engine.loading.checkpoint import LoadedModel
    from service.engine.request import Request, SamplingParams

LOOKUPS = 4
"""look-ups at once: each has threads of its own"""


class Mixture(Protocol):
    """Chooses one request's tokens, in rounds.

    ``guess`` is told the row behind each token and may guess the next one, so that the model goes on at once. Such a
    token is *provisional*: it lies in the request's pages, and nobody is given it. Where there is no guess the round is
    over: the request is *parked* (it keeps its pages and runs no rows) while ``look_up`` runs in another thread; then
    ``settle`` tells the tokens of the round, one at least and one a row at most. What was guessed otherwise is cut off.
    """

    def guess(self, logits: Tensor, hidden: Tensor, position: int) -> int | None:
        """logits [V] of the token at ``position``, and the hidden state [d] that they are made of."""

    def look_up(self) -> None: ...

    def settle(self) -> list[int]: ...

    def stats(self) -> dict[str, Any]:
        """Figures, for those of the request."""


class MixtureSource(Protocol):
    """What a request brings to have a mixture opened for it."""

    def open(self, params: SamplingParams, stops: frozenset[int], loaded: LoadedModel) -> Mixture:
        """``stops`` are the tokens that end the output. Raises what refuses the request."""


def mixed(params: SamplingParams) -> SamplingParams:
    """The parameters of a request with a mixture: it is dense, so that rows can be cut off, and is not drafted.

    Raises:
        InvalidRequest: they ask for what is the model's alone.
    """
    if params.adjusted or params.logprobs is not None:
        raise InvalidRequest(
            "Penalties, biases, constraints and log-probabilities are those of the model alone.",
            hint="Ask without a datastore.",
            param="knn",
        )
    return replace(params, attention="dense", drafter="none")


class Lookups:
    """The parked requests whose look-ups run, each in a worker thread."""

    def __init__(self) -> None:
        self._workers = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="folio-look-up")
        self._running: dict[Future[None], Request] = {}

    def start(self, request: Request) -> None:
        assert request.mixture is not None
        self._running[self._workers.submit(request.mixture.look_up)] = request

    def __bool__(self) -> bool:
        return bool(self._running)

    def ended(self) -> list[tuple[Request, BaseException | None]]:
        """The requests whose look-ups are done, and what they raised; one that has ended meanwhile is forgotten."""
        done = [future for future in self._running if future.done()]
        found = [(self._running.pop(future), future.exception()) for future in done]
        return [(request, error) for request, error in found if request.finish_reason is None]

    def wait(self, seconds: float) -> None:
        """Until one is done, or so long at most; not at all where none runs."""
        wait(self._running, timeout=seconds, return_when=FIRST_COMPLETED)
