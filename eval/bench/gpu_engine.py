"""The engine end to end on models of real shapes with random weights: time to first token, decode steps, graphs.

Random weights do the same arithmetic as trained ones. Their attention is flat, so a policy that chooses by content
finds nothing to leave out; the policies here keep a number of blocks that does not depend on the content.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from eval.bench.base import Row
from eval.bench.timer import time_in_turn

if TYPE_CHECKING:
    import torch

    from service.engine.loading.checkpoint import LoadedModel
    from service.engine.runner.model_runner import ModelRunner
    from service.engine.step import Slice

SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0,
        "max_position_embeddings": 262144,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "rope_theta": 1000000.0,
        "max_position_embeddings": 262144,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "rope_theta": 1000000.0, "max_position_embeddings": 262144, "tie_word_embeddings": True,
    },
}  # fmt: skip

POLICIES = ("dense", "trianglemix", "streaming")


@dataclass(frozen=True)
class Ceilings:
    """What the device can do (`gpu_check.Bench.ceilings`)."""

    bytes_per_s: float
    flops_per_s: float


def random_model(name: str, device: torch.device, dtype: torch.dtype, **changes: Any) -> LoadedModel:
    """A model of the named shape whose weights are made on the device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from service.engine.loading.checkpoint import prepare

    shape = {**SHAPES[name], **changes}
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return prepare(name, model.eval())


def measure(
    loaded: LoadedModel,
    ceilings: Ceilings,
    length: int,
    policies: tuple[str, ...] = POLICIES,
    new_tokens: int = 33,
    deadline: float = math.inf,
    **options: Any,
) -> list[Row]:
    """Prefill and decode of one prompt of ``length`` random tokens under each policy.

    ``options`` are EngineConfig's. A row: time to first token, decode step, and the step over its limit, which is the
    time to read the weights and the visited K and V once.
    """
    from eval.bench.runner import Timing, ask, build, plain, random_ids

    per_token = loaded.kv_shape.bytes_per_token(next(loaded.model.parameters()).dtype)
    memory = int(1.1 * per_token * (length + 4096))
    sizes = {"kv_memory": memory, "max_model_len": length + 1024, "step_tokens": 8192, "max_running": 4}
    prompt = random_ids(length, 0, loaded.vocab_size)
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    rows: list[Row] = []
    with build(loaded, 0, **sizes | options) as engine:
        for policy in policies:
            if time.monotonic() > deadline:
                break
            ask(engine, prompt[:16384], plain(new_tokens, policy))  # kernels are tuned at their first launch
            timing = Timing()
            stats = ask(engine, prompt, plain(new_tokens, policy), timing).stats
            step = 1 / timing.tokens_per_s
            kv = per_token * length * stats.get("decode_density", 1.0)
            rows.append(
                {
                    "model": loaded.name,
                    "length": length,
                    "attention": policy,
                    "ttft_s": timing.median_first_s,
                    "decode_step_ms": step * 1e3,
                    "times_limit": step * ceilings.bytes_per_s / (weights + kv),
                    "prefill_density": stats.get("prefill_density", 1.0),
                    "kernels": stats["kernels"],
                    "ttft_speedup": (rows[0]["ttft_s"] if rows else timing.median_first_s) / timing.median_first_s,
                }
            )
        graphs = engine.engine.stats().get("cuda_graphs")
    if graphs is not None:
        rows = [row | {"cuda_graphs": graphs} for row in rows]
    del engine
    gc.collect()
    return rows


def eager_and_graph(loaded: LoadedModel, length: int, batches: tuple[int, ...] = (1, 4, 16)) -> list[Row]:
    """A decode step of so many sequences of ``length`` tokens, launched kernel by kernel and replayed as a graph."""

    from service.engine.params import SamplingParams
    from service.engine.request import Request
    from service.engine.runner.cuda_graphs import Bucket, GraphCapture, GraphedRunner
    from service.engine.runner.model_runner import ModelRunner
    from service.engine.step import Slice
    from sparse_attn.kv.pool import KVPool

    parameter = next(loaded.model.parameters())
    size, count = 64, max(batches)
    each = length // size + 1
    pool = KVPool(loaded.kv_shape, count * each, size, parameter.dtype, parameter.device)
    plain = ModelRunner(loaded.model, pool)
    graphed = GraphedRunner(loaded.model, pool, [Bucket(n, 1) for n in batches], each, GraphCapture())
    slices = []
    for n in range(count):
        request = Request(f"r{n}", [5], SamplingParams())
        request.pages = [(page,) for page in range(n * each, (n + 1) * each)]
        slices.append(Slice(request, length, [5], samples=True))
    rows = []
    for batch in batches:
        row: Row = {"model": loaded.name, "length": length, "batch": batch}
        ways = {"eager": partial(_choose, plain, slices[:batch]), "graph": partial(_choose, graphed, slices[:batch])}
        for name, times in time_in_turn(ways, rounds=10, warm=2).items():
            row[f"{name}_ms"] = times.median * 1e3
        row["speedup"] = row["eager_ms"] / row["graph_ms"]
        rows.append({**row, "refused": graphed.graphs.refused})
    return rows


def _choose(runner: ModelRunner, slices: list[Slice]) -> list[int]:
    """The likeliest token after each row, back on the host."""
    return runner.run(slices).logits.argmax(-1).tolist()
