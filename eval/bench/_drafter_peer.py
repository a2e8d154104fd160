"""transformers' own prompt lookup on the same prompts."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from service.engine.engine import Engine
from service.reader import MODEL_DIR


def transformers_prompt_lookup(
    engine: Engine, asked: Sequence[list[int]], max_tokens: int, stop_freely: bool
) -> dict[str, Any]:
    """transformers' own decoding and prompt lookup over the same prompts, greedy, the prompt's KV computed
    before."""
    path = str(MODEL_DIR) if engine.loaded.name == "embedded" else engine.loaded.name
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    figures = {}
    with torch.inference_mode():
        for name, options in (("plain", {}), ("prompt_lookup", {"prompt_lookup_num_tokens": 10})):
            seconds, tokens = 0.0, 0
            common = _common_prefix(asked)
            cache = DynamicCache(config=model.config)
            for start in range(0, common, 2048):
                chunk = torch.tensor([asked[0][start : min(start + 2048, common)]])
                model(chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
            for prompt in asked:
                kept = copy.deepcopy(cache)
                if len(prompt) - 1 > common:
                    model(torch.tensor([prompt[common:-1]]), past_key_values=kept, use_cache=True)
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
                tokens += out.shape[1] - len(prompt)
            figures[name] = tokens / seconds
    return {"transformers_tokens_per_s": figures}


def _common_prefix(asked: Sequence[list[int]]) -> int:
    shortest = min(map(len, asked)) - 1
    return next((i for i in range(shortest) if len({ids[i] for ids in asked}) > 1), shortest)
