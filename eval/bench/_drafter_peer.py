"""transformers' own prompt lookup on the same prompts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from eval.bench._drafter_timing import timed
from service.engine.engine import Engine
from service.engine.request import SamplingParams
from service.reader import MODEL_DIR


def beside_transformers(
    engine: Engine, asked: Sequence[list[int]], max_tokens: int, stop_freely: bool, rounds: int = 3
) -> dict[str, Any]:
    """Greedy tokens per second after a prompt's first forward: transformers' own decoding and prompt lookup, and ours,
    in turn over the same prompts; medians of `rounds`."""
    path = str(MODEL_DIR) if engine.loaded.name == "embedded" else engine.loaded.name
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False).eval()
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=not stop_freely)
    options = {"transformers": {}, "transformers_prompt_lookup": {"prompt_lookup_num_tokens": 10}}
    rates: dict[str, list[float]] = {}
    ids: dict[str, list[list[int]]] = {}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, extra in options.items():
                ids[name], rate = _generated(model, asked, max_tokens, stop_freely, extra)
                rates.setdefault(name, []).append(rate)
            for name in ("prompt_lookup", "auto"):
                engine.drafting.resources = engine.drafting.resources.untaught()
                ours = timed(engine, asked, params, name, 1)
                ids[name] = ours.ids
                rates.setdefault(name, []).append(ours.rate)
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "tokens_per_s": median,
        "same_ids_as_own_decoding": ids["transformers"] == ids["transformers_prompt_lookup"],
        "same_ids_as_ours": ids["transformers"] == ids["auto"] == ids["prompt_lookup"],
        "prompt_lookup_over_peer": median["prompt_lookup"] / median["transformers_prompt_lookup"],
        "auto_over_peer": median["auto"] / median["transformers_prompt_lookup"],
    }


def _generated(
    model: Any, asked: Sequence[list[int]], max_tokens: int, stop_freely: bool, options: dict[str, Any]
) -> tuple[list[list[int]], float]:
    """Each prompt's tokens, and tokens per second of them all.

    A prompt's first forward is not counted, but all tokens except the first are, those included that prompt lookup had
    accepted in it. It cannot be spared by giving `generate` the prompt's KV: assisted generation runs the whole prompt
    again behind it, at wrong positions (transformers 5.23).
    """
    seconds, answers = 0.0, []
    ended: list[float] = []
    hook = model.register_forward_hook(lambda *_: ended.append(time.perf_counter()))
    try:
        for prompt in asked:
            ids = torch.tensor([prompt])
            ended.clear()
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_tokens,
                eos_token_id=model.config.eos_token_id if stop_freely else None,
                **options,
            )
            seconds += time.perf_counter() - ended[0]
            answers.append(out[0, len(prompt) :].tolist())
    finally:
        hook.remove()
    return answers, sum(len(answer) - 1 for answer in answers) / seconds
