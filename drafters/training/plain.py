"""A transformers model as the target of a drafter that learns through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class PlainTarget:
    """`drafters.protocols.Differentiable` over a causal model of transformers, on a CPU."""

    def __init__(self, name: str, model: Any) -> None:
        config = model.config.get_text_config()
        self.name, self._model = name, model
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.hidden_size = int(config.hidden_size)
        self.num_layers = int(config.num_hidden_layers)
        self.layer_config: Mapping[str, Any] = config.to_dict()

    def embed(self, ids: Tensor) -> Tensor:
        """What goes into the first layer: [..., hidden_size]."""
        return self._model.get_input_embeddings()(ids)  # type: ignore[no-any-return]

    def output_rows(self, ids: Tensor) -> Tensor:
        """Rows of the output matrix, [n, hidden_size]."""
        return self._model.get_output_embeddings().weight.detach()[ids]  # type: ignore[no-any-return]

    def through(self, embedded: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """As `Differentiable.through`."""
        mask = torch.zeros(seen.shape, dtype=embedded.dtype).masked_fill(~seen, torch.finfo(embedded.dtype).min)
        out = self._model.base_model(
            inputs_embeds=embedded,
            position_ids=positions[None],
            attention_mask=mask.expand(len(embedded), 1, -1, -1),
            use_cache=False,
        )
        return out.last_hidden_state  # type: ignore[no-any-return]
