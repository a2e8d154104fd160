"""The descent that trains a whole model: AdamW, a rate that falls as a cosine does, gradients of norm 1 at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def descended(
    model: Any, loss: Callable[[], Tensor], steps: int, learning_rate: float, weight_decay: float
) -> Iterator[float]:
    """Train `model` in place and leave it in `eval`; yields each step's loss, which `loss` makes anew."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        found = loss()
        optimiser.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        yield float(found.detach())
    model.eval()
