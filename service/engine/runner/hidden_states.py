"""The hidden states that a model's logits are made of, read off its forwards without a change to the model, and the way
from them to the logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import MoeModelOutputWithPast

from service.errors import ModelError


def hidden_size(model: Any) -> int:
    """Numbers of one hidden state. Error: ModelError, where the model has no body apart from its head."""
    if model.base_model is model:
        raise ModelError(f"{type(model).__name__} shows no hidden states.", param="model")
    return int(model.config.get_text_config().hidden_size)


@contextmanager
def watched(model: Any) -> Iterator[list[Tensor]]:
    """A list to which each forward meanwhile adds the last layer's output after its norm, [rows, hidden_size]."""
    seen: list[Tensor] = []
    hook = model.base_model.register_forward_hook(lambda _module, _inputs, out: seen.append(out.last_hidden_state[0]))
    try:
        yield seen
    finally:
        hook.remove()


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
