"""lm-evaluation-harness over an engine in this process: ``python -m eval.lm_eval --model folio --model_args …``.

``--model_args model=smollm2,attention=quest,drafter=auto`` takes the model and any option of the engine; all else are
the harness' own flags. It must be installed (``pip install lm_eval``). Over HTTP the harness needs nothing of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from service.engine.async_engine import AsyncEngine
from service.engine.params import SamplingParams

NEW_TOKENS = 256  # where a task says nothing of its answers' length


@register_model("folio")
class FolioLM(LM):
    """Log-likelihoods are sums over the prompt's own log-probabilities; generation is the engine's."""

    def __init__(self, model: str = "smollm2", **options: Any) -> None:
        """options: of `service.engine.config.EngineConfig`; the harness' own batch size and device are not ours."""
        super().__init__()
        kept = {
            name: value for name, value in options.items() if name not in ("batch_size", "max_batch_size", "device")
        }
        self._engine = AsyncEngine.from_pretrained(model, **kept)
        self._engine.start()
        self._tokenizer = self._engine.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """By which the harness keeps requests apart."""
        return self._engine.engine.loaded.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own, which the harness logs."""
        return getattr(self._tokenizer, "chat_template", None)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self._tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the sum over the tokens of the latter, and whether they are the greedy ones.

        Only the end of what is too long for the window is read.
        """
        pairs = [self._pair(*request.args) for request in requests]
        window = self._engine.window
        read = [(before + after)[-window:] for before, after in pairs]
        found = self._engine.generate(read, SamplingParams(max_tokens=0, prompt_logprobs=0, drafter="none"))
        answers = []
        for (_, after), ids, generation in zip(pairs, read, found, strict=True):
            scored = (generation.prompt_logprobs or [])[-min(len(after), len(ids) - 1) :]
            answers.append((sum(one.logprob for one in scored), all(one.rank == 1 for one in scored)))
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of each whole text, behind the token that begins one; in windows that share no token that is scored."""
        window = self._engine.window - 1
        texts = [self._ids(request.args[0]) for request in requests]
        parts = [
            (number, ids[max(0, end - window - 1) : end], end - start)
            for number, ids in enumerate([self._prefix(), *ids] for ids in texts)
            for start in range(1, len(ids), window)
            for end in [min(start + window, len(ids))]
        ]
        params = SamplingParams(max_tokens=0, prompt_logprobs=0, drafter="none")
        found = self._engine.generate([ids for _, ids, _ in parts], params)
        sums = [0.0] * len(texts)
        for (number, _, count), generation in zip(parts, found, strict=True):
            sums[number] += sum(one.logprob for one in (generation.prompt_logprobs or [])[-count:])
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers, cut before their stopping strings."""
        params, prompts = [], []
        for request in requests:
            text, asked = request.args
            until = asked.get("until") or ()
            sampled = asked.get("do_sample", float(asked.get("temperature") or 0) > 0)
            count = min(int(asked.get("max_gen_toks", NEW_TOKENS)), self._engine.window - 1)
            params.append(
                SamplingParams(
                    max_tokens=count,
                    temperature=float(asked.get("temperature", 1.0)) if sampled else 0.0,
                    top_p=float(asked.get("top_p", 1.0)),
                    stop=tuple(one for one in ([until] if isinstance(until, str) else until) if one),
                )
            )
            prompts.append(self._ids(text)[-(self._engine.window - count) :])
        return [generation.text for generation in self._engine.generate(prompts, params)]

    def close(self) -> None:
        """End the engine."""
        self._engine.stop()

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both, cut where the text is: a blank at the end of the context belongs to the continuation."""
        blanks = len(context) - len(context.rstrip())
        if blanks:
            context, continuation = context[:-blanks], context[-blanks:] + continuation
        if not context:
            return [self._prefix()], self._ids(continuation)
        before, whole = self._ids(context), self._ids(context + continuation)
        return before, whole[len(before) :]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _prefix(self) -> int:
        """The token that begins a text, or else ends one."""
        bos = self._tokenizer.bos_token_id
        return self._tokenizer.eos_token_id if bos is None else bos


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
