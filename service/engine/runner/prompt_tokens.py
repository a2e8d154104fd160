"""Token ids beyond the vocabulary, whose embeddings are a trained drafter's own (`drafters.heads.ppd`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class WithPromptTokens(nn.Module):
    """A model's embedding; ids from its vocabulary on are the rows of ``prompts`` [n, d]."""

    prompts: Tensor

    def __init__(self, inner: Any, vocab_size: int, prompts: Tensor) -> None:
        super().__init__()
        self.inner, self._vocab_size = inner, vocab_size
        self.register_buffer("prompts", prompts.detach(), persistent=False)

    @property
    def weight(self) -> Tensor:
        """Of the model's own ids."""
        return self.inner.weight  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        own = self.inner(ids.clamp(max=self._vocab_size - 1))
        rows = self.prompts[(ids - self._vocab_size).clamp(min=0)].to(own.dtype)
        return torch.where((ids >= self._vocab_size)[..., None], rows, own)


def lend_prompts(model: Any, vocab_size: int, prompts: Tensor) -> None:
    """Have a model know a drafter's prompt tokens, in place of another's where it does already."""
    inner = model.get_input_embeddings()
    inner = inner.inner if isinstance(inner, WithPromptTokens) else inner
    model.set_input_embeddings(WithPromptTokens(inner, vocab_size, prompts))
