"""The hidden states that a model's logits are made of, read off its forwards without a change to the model, and the way
from them to the logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import MoeModelOutputWithPast

from drafters.heads.head import LAST
from service.errors import ModelError


def hidden_size(model: Any) -> int:
    """Numbers of one hidden state. Error: ModelError, where the model has no body apart from its head."""
    if model.base_model is model:
        raise ModelError(f"{type(model).__name__} shows no hidden states.", param="model")
    return int(model.config.get_text_config().hidden_size)


@dataclass
class Seen:
    """The states [rows, hidden_size] of the last forward, by the number of the layer; ``layers`` are those besides LAST
    that are wanted."""

    layers: frozenset[int] = frozenset()
    states: dict[int, Tensor] = field(default_factory=dict)

    def of(self, layers: Sequence[int], rows: slice) -> Tensor:
        """The states of some layers and rows, [rows, layers, hidden_size]."""
        return torch.stack([self.states[layer][rows] for layer in layers], 1)


@contextmanager
def watched(model: Any, layers: Iterable[int] = ()) -> Iterator[Seen]:
    """The states of each forward meanwhile: LAST, and those of ``layers``."""
    body = model.base_model
    seen = Seen(frozenset(layers) - {LAST})

    def keep(_module: Any, _inputs: Any, out: Any) -> None:
        seen.states[LAST] = out.last_hidden_state[0]

    hook = body.register_forward_hook(keep)
    try:
        if not seen.layers:
            yield seen
        elif TAPS in vars(body):  # layers that run in one call
            vars(body)[TAPS].append(seen)
            try:
                yield seen
            finally:
                vars(body)[TAPS].remove(seen)
        else:
            with hooked(decoder_layers(model), seen):
                yield seen
    finally:
        hook.remove()


TAPS = "folio_taps"
"""The attribute of a body whose forward is Folio's own (`fused_layers`): who wants to see its layers' states."""


@contextmanager
def hooked(layers: Any, seen: Seen) -> Iterator[None]:
    """Have the states that go into modules kept, and those that come out of the last."""

    def entering(number: int) -> Any:
        def keep(_module: Any, args: Any, kwargs: Any) -> None:
            seen.states[number] = (args[0] if args else kwargs["hidden_states"])[0]

        return keep

    def leaving(_module: Any, _inputs: Any, out: Any) -> None:
        seen.states[len(layers)] = (out if isinstance(out, Tensor) else out[0])[0]

    hooks = [
        layers[number].register_forward_pre_hook(entering(number), with_kwargs=True)
        for number in seen.layers
        if number < len(layers)
    ]
    if len(layers) in seen.layers:
        hooks.append(layers[-1].register_forward_hook(leaving))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def decoder_layers(model: Any) -> torch.nn.ModuleList:
    """The decoder's layers: the module list as long as the model has layers."""
    wanted = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return module
    raise ValueError(f"{type(model).__name__} keeps its layers in no module list of length {wanted}")


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """The logits [n, V] that the model makes of hidden states [n, hidden_size].

    By its own forward, for there is more to it than the head (soft caps, scales); only the body's part is given.
    """
    body = model.base_model
    own = vars(body).get("forward")
    body.forward = lambda *_, **__: MoeModelOutputWithPast(last_hidden_state=hidden[None])
    try:
        ids = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
        return model(input_ids=ids, use_cache=False).logits[0]
    finally:
        del body.forward
        if own is not None:
            body.forward = own
