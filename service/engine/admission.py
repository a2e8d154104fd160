"""What an engine refuses: options that it does not have, and prompts that it can never run.

From any thread, and before anything is retrieved, queued or computed. Cheap, but for a constraint that is new.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

from service.engine.blending import check_blendable
from service.engine.checks import check_options
from service.engine.engine import Engine
from service.engine.options import blends, parse_policy
from service.engine.params import SamplingParams
from service.engine.spans import PassageSpans
from service.errors import InvalidRequest, PromptTooLong


class Admission:
    """What one engine takes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @cached_property
    def window(self) -> int:
        """Most tokens of prompt and answer together under the default policy, by the model and by the KV pool."""
        engine = self._engine
        lengths = range(1, engine.max_model_len + 1)
        return bisect_left(lengths, True, key=lambda length: engine.most_pages(length, length) > engine.num_pages)

    def check(self, params: SamplingParams) -> None:
        """Refuse options that this engine does not have. Raises InvalidRequest."""
        engine = self._engine
        check_options(params.drafter, params.attention, None, lambda: engine.shape)
        if params.attention:
            engine.canary.check(parse_policy(params.attention).cache_key(), params.owner)
        if params.constraint is not None:
            engine.constraints.prepare(params.constraint)  # inspects it, unless it is kept
        if params.stop and engine.tokenizer is None:
            raise InvalidRequest("Stop strings need a tokenizer, which this model has not.", param="stop")
        unknown = next((token for token, _ in params.logit_bias if token >= engine.vocab_size), None)
        if unknown is not None:
            raise InvalidRequest(
                f"logit_bias names token id {unknown}; the model knows 0 to {engine.vocab_size - 1}.",
                param="logit_bias",
            )

    def check_prompt(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        param: str = "prompt",
        spans: PassageSpans | None = None,
    ) -> None:
        """Refuse a prompt that can never run; `param` is what the asker calls it, `spans` where it holds passages.

        Raises:
            InvalidRequest: it is empty, holds a token id that the model has not, or no passages where they are needed.
            PromptTooLong: it and the answer are longer than the model or the whole KV pool holds.
        """
        engine = self._engine
        if not prompt_ids:
            raise InvalidRequest("The prompt is empty.", param=param)
        low, high = min(prompt_ids), max(prompt_ids)
        if low < 0 or high >= engine.vocab_size:
            raise InvalidRequest(
                f"The prompt holds token id {low if low < 0 else high}; the model knows 0 to {engine.vocab_size - 1}.",
                hint="Encode it with the model's own tokenizer.",
                param=param,
            )
        if blends(params.attention):
            check_blendable(params, spans)
        asked = f"the prompt has {len(prompt_ids)} tokens and the answer may have {params.max_tokens}"
        whole = len(prompt_ids) + params.max_tokens
        if whole > engine.max_model_len:
            hint = "Shorten the prompt, lower max_tokens, or use retrieval."
            raise PromptTooLong.for_model(engine.max_model_len, asked, hint, param)
        pages = engine.most_pages(len(prompt_ids), whole, params.attention)
        if pages > engine.num_pages:
            raise PromptTooLong(
                f"The maximum context length is {self.window} tokens in {engine.num_pages} pages of KV; {asked}, "
                f"which takes {pages}.",
                hint="Raise FOLIO_KV_MEMORY, shorten the prompt, lower max_tokens, or use retrieval.",
                param=param,
            )
