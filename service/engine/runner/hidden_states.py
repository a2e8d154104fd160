"""The hidden states that a model's logits are made of, read off its forwards without a change to the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from service.engine.drafting.sessions import PagedDraftModel
from service.errors import ModelError


class HiddenStates:
    """Keeps the last layer's output (after its norm) of the latest forward."""

    def __init__(self, model: Any) -> None:
        """Error: ModelError, where the model has no body apart from its head."""
        body = model.base_model
        if body is model:
            raise ModelError(f"{type(model).__name__} shows no hidden states.", param="model")
        self.dim = int(model.config.get_text_config().hidden_size)
        self._latest: torch.Tensor | None = None
        body.register_forward_hook(self._keep)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._latest = output.last_hidden_state[0]

    def latest(self) -> np.ndarray:
        """float32[rows of the forward, dim]."""
        assert self._latest is not None
        return self._latest.float().cpu().numpy()

    def of_tokens(self, model: PagedDraftModel, token_ids: Sequence[int]) -> np.ndarray:
        """float32[len(token_ids), dim]: read as a sequence of their own, in chunks of what a step holds."""
        session = model.open(())
        model.runner.reads_every_row = True
        try:
            parts = []
            for start in range(0, len(token_ids), model.chunk):
                session.read(token_ids[start : start + model.chunk])
                parts.append(self.latest().copy())
            return np.concatenate(parts)
        finally:
            model.runner.reads_every_row = False
            session.close()
