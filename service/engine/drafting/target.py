"""The engine's model as trained drafters and those who train them see it (`drafters.protocols.Target`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from service.engine.loading.checkpoint import LoadedModel
from service.engine.runner.packed_layers import PackedLinear
from service.errors import ModelError


class TargetView:
    """What a loaded model lends: embeddings, rows of its output matrix, and its sizes.

    Raises:
        ModelError: its weights are shared by several processes.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        if loaded.ranks is not None:
            raise ModelError(
                "A trained drafter needs the whole model in one process, not shared with --tp.", param="draft_model"
            )
        config = loaded.model.config.get_text_config()
        self._model = loaded.model
        self.name = loaded.name
        self.vocab_size = loaded.vocab_size
        self.hidden_size = int(config.hidden_size)
        self.num_layers = int(config.num_hidden_layers)
        self.layer_config: Mapping[str, Any] = config.to_dict()

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """What goes into the first layer: float32 [..., hidden_size]."""
        found: Tensor = self._model.get_input_embeddings()(ids.to(self._model.device))
        return found.float()

    @torch.no_grad()
    def output_rows(self, ids: Tensor) -> Tensor:
        """Rows of the output matrix, float32 [n, hidden_size]."""
        output = self._model.get_output_embeddings()
        if isinstance(output, PackedLinear):
            return output.packed.rows(ids)
        return output.weight[ids.to(output.weight.device)].float()  # type: ignore[no-any-return]
