"""Tokens from the target's distribution mixed with another one, which is looked up outside the steps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from service.engine.params import SamplingParams
from service.errors import InvalidRequest

if TYPE_CHECKING:
    from service.engine.loading.checkpoint import LoadedModel


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
