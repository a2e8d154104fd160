"""transformers' own prompt lookup on the same prompts."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from eval.bench._drafter_timing import timed
from service.engine.engine import Engine
from service.engine.request import SamplingParams
from service.reader import MODEL_DIR


def beside_transformers(
    engine: Engine, asked: Sequence[list[int]], max_tokens: int, stop_freely: bool, rounds: int = 3
) -> dict[str, Any]:
    """Greedy tokens per second over the same prompts, their KV computed before: transformers' own decoding and prompt
    lookup, and ours, in turn; medians of `rounds`."""
    path = str(MODEL_DIR) if engine.loaded.name == "embedded" else engine.loaded.name
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=not stop_freely)
    options = {"transformers": {}, "transformers_prompt_lookup": {"prompt_lookup_num_tokens": 10}}
    rates: dict[str, list[float]] = {}
    ids: dict[str, list[list[int]]] = {}
    with torch.inference_mode():
        cache = _prefilled(model, asked[0][: _common_prefix(asked)])
        for _ in range(rounds):
            for name, extra in options.items():
                ids[name], rate = _generated(model, cache, asked, max_tokens, stop_freely, extra)
                rates.setdefault(name, []).append(rate)
            for name in ("prompt_lookup", "auto"):
                engine.drafting.resources.forget()
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


def _prefilled(model: Any, ids: list[int], chunk: int = 2048) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    for start in range(0, len(ids), chunk):
        model(torch.tensor([ids[start : start + chunk]]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _generated(
    model: Any,
    cache: DynamicCache,
    asked: Sequence[list[int]],
    max_tokens: int,
    stop_freely: bool,
    options: dict[str, Any],
) -> tuple[list[list[int]], float]:
    """Each prompt's tokens, and tokens per second of them all. `cache` holds what the prompts begin with."""
    seconds, answers = 0.0, []
    for prompt in asked:
        kept = copy.deepcopy(cache)
        rest = prompt[kept.get_seq_length() : -1]
        if rest:
            model(torch.tensor([rest]), past_key_values=kept, use_cache=True, logits_to_keep=1)
        ids = torch.tensor([prompt])
        began = time.perf_counter()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=kept,
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=model.config.eos_token_id if stop_freely else None,
            **options,
        )
        seconds += time.perf_counter() - began
        answers.append(out[0, len(prompt) :].tolist())
    return answers, sum(map(len, answers)) / seconds


def _common_prefix(asked: Sequence[list[int]]) -> int:
    shortest = min(map(len, asked)) - 1
    return next((i for i in range(shortest) if len({ids[i] for ids in asked}) > 1), shortest)
