"""The engine's model as those see it who train a drafter for it (`drafters.protocols.Teacher`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from drafters.heads.head import LAST
from drafters.training.plain import PlainTarget
from service.engine.async_engine import AsyncEngine
from service.engine.drafting.target import TargetView
from service.engine.loading.sources import find_model
from service.engine.params import SamplingParams
from service.engine.request import Reading
from service.engine.runner.hidden_states import logits_of
from service.engine.runner.model_runner import SCORED_ROWS
from service.errors import InvalidRequest


class EngineTeacher(TargetView):
    """Reads and answers through an engine that is open.

    Raises:
        InvalidRequest: the model has no tokenizer.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine.engine.loaded)
        if engine.tokenizer is None:
            raise InvalidRequest("A drafter is trained on text, and this model has no tokenizer.", param="model")
        self._engine = engine
        self._tokenizer = engine.tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)  # type: ignore[no-any-return]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)  # type: ignore[no-any-return]

    def ask(self, text: str) -> list[int]:
        """A user's message by the chat template; as it stands where there is none."""
        if getattr(self._tokenizer, "chat_template", None) is None:
            return self.encode(text)
        turn = [{"role": "user", "content": text}]
        rendered: str = self._tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return self.encode(rendered)

    def answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        each = [
            SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed + i) for i in range(len(prompts))
        ]
        return [one.token_ids for one in self._engine.generate(prompts, each)]

    def through(self, embedded: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """As `drafters.protocols.Differentiable.through`, by the model as transformers has it, once more in memory."""
        return self._plain.through(embedded, positions, seen)

    @cached_property
    def _plain(self) -> PlainTarget:
        model: Any = find_model(self.name).build(torch.float32, "cpu", {"device_map": None})
        return PlainTarget(self.name, model.eval().requires_grad_(False))

    def states(self, token_ids: Sequence[int], layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """float32 [n, layers, hidden_size], and int64 [n]."""
        states = torch.empty(len(token_ids), len(layers), self.hidden_size)
        choices = torch.empty(len(token_ids), dtype=torch.int64)
        wanted = (*layers, LAST)

        def keep(start: int, seen: Tensor) -> None:
            states[start : start + len(seen)] = seen[:, :-1].float().cpu()
            for first in range(0, len(seen), SCORED_ROWS):
                best = logits_of(self._model, seen[first : first + SCORED_ROWS, -1]).argmax(-1)
                choices[start + first : start + first + len(best)] = best.cpu()

        with torch.inference_mode():
            self._engine.read(token_ids, Reading(on_chunk=keep, layers=wanted), attention="dense")
        return states, choices
