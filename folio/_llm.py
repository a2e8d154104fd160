"""A model: text in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from service.answering.prompting.layouts import ChatLayout, PlainLayout
from service.engine.outputs import Generation
from service.engine.params import SamplingParams
from service.errors import InvalidRequest
from service.models import chat_layout_for, load_engine
from service.settings import load_settings


class LLM:
    """Any decoder-only checkpoint, ready to generate. Use it from any thread; `close` it, or use it as a context.

    Attributes:
        name: as it was asked for.
        engine: the door to the engine below, with `stream` for asyncio and figures.
    """

    def __init__(self, model: str = "embedded", **options: Any) -> None:
        """Load a model: ``embedded``, ``smollm2``, a GGUF file, a folder, or a hub id.

        Options are settings (docs/operations.md) and go before FOLIO_* variables: ``kv_memory``, ``dtype``, ….

        Raises:
            ModelError: it cannot be found, read or run. InvalidRequest: an option is refused.
        """
        self.name = model
        self.engine = load_engine(load_settings(model=model, **options))
        self.engine.start()

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Generation]:
        """Continue prompts, texts or lists of token ids, all at once; results in their order.

        Args:
            params: of each prompt, or one for all; by default as the model's makers sample where they say so
                (generation_config.json), else greedily, and up to 256 tokens.

        Raises:
            PromptTooLong, InvalidRequest: before anything ran.
        """
        given = [prompts] if isinstance(prompts, str) else prompts
        return self.engine.generate([self._ids(prompt) for prompt in given], params or self._default_params)

    def chat(self, messages: Sequence[Mapping[str, str]], params: SamplingParams | None = None) -> Generation:
        """The next turn of a conversation of ``{"role": …, "content": …}``, by the model's own chat template.

        Contents are text: what looks like a special token in them is none. `params` as of `generate`.
        """
        ids = self._chat.chat_ids(messages)
        return self.engine.generate([ids], params or self._default_params)[0]

    def close(self) -> None:
        """Abort what is in flight and let go of the model."""
        self.engine.stop()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def _chat(self) -> ChatLayout | PlainLayout:
        return chat_layout_for(self._tokenizer)

    @property
    def _default_params(self) -> SamplingParams:
        return SamplingParams(**self.engine.sampling_defaults.fill({}))

    @property
    def _tokenizer(self) -> Any:
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise InvalidRequest("This model has no tokenizer.", hint="Give lists of token ids.", param="prompts")
        return tokenizer

    def _ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        return list(self._tokenizer(prompt).input_ids) if isinstance(prompt, str) else prompt
