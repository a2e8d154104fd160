"""One prompt through transformers' `generate` and through the engine, in turn, with every token timed.

Both have the same random weights: speed does not depend on what a model has learnt.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import prepare
from service.engine.request import SamplingParams

VOCABULARY = 2048
KV_HEADROOM = 256  # tokens


@dataclass
class Timing:
    """Seconds of one system, over all repeats: to the first token, and between tokens."""

    first_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)

    @property
    def median_first_s(self) -> float:
        return statistics.median(self.first_s)

    @property
    def tokens_per_s(self) -> float:
        return 1 / statistics.median(self.between_s)

    def add(self, started: float, stamps: list[float], tokens: list[int]) -> None:
        self.first_s.append(stamps[0] - started)
        self.between_s += [after - before for before, after in itertools.pairwise(stamps)]
        self.tokens = tokens


def random_llama(max_length: int, vocabulary: int = VOCABULARY, **changes: Any) -> LlamaForCausalLM:
    """A Llama of 27 M parameters with seeded random weights: 8 layers, 8 query and 4 KV heads of 64, float32.

    ``changes`` are further values of its `LlamaConfig`.
    """
    torch.manual_seed(0)
    values = {
        "vocab_size": vocabulary,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": max_length,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return LlamaForCausalLM(LlamaConfig(**values | changes)).eval()


def compare(context: int, new_tokens: int, repeats: int, threads: int) -> tuple[Timing, Timing]:
    """(transformers with sdpa, the engine, dense and without a drafter) on one prompt of `context` random ids."""
    torch.set_num_threads(threads)
    model = random_llama(context + new_tokens + KV_HEADROOM)
    prompt = torch.randint(2, VOCABULARY, (context,), generator=torch.Generator().manual_seed(1)).tolist()
    engine = _engine(copy.deepcopy(model), context + new_tokens + KV_HEADROOM)
    model.set_attn_implementation("sdpa")
    theirs, ours = Timing(), Timing()
    for _ in range(repeats):
        _generate_transformers(model, prompt, new_tokens, theirs)
        _generate_engine(engine, prompt, new_tokens, ours)
    return theirs, ours


def describe(timing: Timing) -> dict[str, Any]:
    return {
        "first_token_s": timing.first_s,
        "median_first_token_s": timing.median_first_s,
        "decode_ms_per_token_median": 1e3 / timing.tokens_per_s,
        "decode_tokens_per_s": timing.tokens_per_s,
        "kernels": timing.kernels,
    }


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many greedy ids agree before the first that does not."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


class _Stamps(BaseStreamer):
    """A streamer of `generate`: notes when each token comes; the first call brings the prompt."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.inference_mode()
def _generate_transformers(model: Any, prompt: list[int], new_tokens: int, timing: Timing) -> None:
    stamps = _Stamps()
    ids = torch.tensor([prompt])
    started = time.perf_counter()
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=1,
        streamer=stamps,
    )
    timing.add(started, stamps.at[1:], output[0, len(prompt) :].tolist())
    timing.kernels = ["transformers sdpa"]


def _engine(model: LlamaForCausalLM, length: int) -> Engine:
    loaded = prepare("random-llama-27m", model)
    kv_memory = 2 * length * loaded.kv_shape.bytes_per_token(torch.float32)
    return Engine(loaded, EngineConfig(kv_memory=kv_memory, prefix_cache=False, attention="dense", drafter="none"))


def _generate_engine(engine: Engine, prompt: list[int], new_tokens: int, timing: Timing) -> None:
    started = time.perf_counter()
    request = engine.add_request(prompt, SamplingParams(max_tokens=new_tokens, ignore_eos=True))
    stamps: list[float] = []
    tokens: list[int] = []
    while len(tokens) < new_tokens:
        for output in engine.step():
            if output.error:
                raise RuntimeError(f"request {request} failed: {output.error}")
            stamps += [time.perf_counter()] * len(output.token_ids)
            tokens += output.token_ids
            if output.finished:
                timing.kernels = output.stats.get("kernels", [])
    timing.add(started, stamps, tokens)
