"""The engine end to end on models of real shapes with random weights: time to first token, decode steps, graphs.

Random weights do the same arithmetic as trained ones. Their attention is flat, so a policy that chooses by content
finds nothing to leave out; the policies here keep a number of blocks that does not depend on the content.
"""

from __future__ import annotations

import copy
import gc
import itertools
import math
import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from eval.bench.base import Row
from eval.bench.timer import time_in_turn

if TYPE_CHECKING:
    import torch

    from service.engine.loading.checkpoint import LoadedModel
    from service.engine.request import Request
    from service.engine.runner.model_runner import ModelRunner
    from service.engine.step import Slice
    from sparse_attn.kv.pool import KVPool

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

TINY: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 97, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
"""Changes to a shape for a rehearsal."""

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


def decode_steps(loaded: LoadedModel, length: int, batch: int, bytes_per_s: float) -> list[Row]:
    """A decode step of so many sequences of ``length`` tokens: replayed, by the host's clock, and what it consists of.

    ``times_limit`` is the replay over the time to read the weights and the K and V once.
    """
    import torch

    from eval.bench.gpu.kernels import MOST_BYTES
    from service.engine.runner.cuda_graphs import Bucket, GraphedRunner
    from service.engine.step import Slice

    parameter = next(loaded.model.parameters())
    kv = loaded.kv_shape.bytes_per_token(parameter.dtype) * length * batch
    if kv > MOST_BYTES:
        return []
    pool, requests = _decoding(loaded, batch, length)
    pages = len(requests[0].pages)
    runner = GraphedRunner(loaded.model, pool, [Bucket(batch, batch)], pages, _capture(parameter))
    slices = [Slice(request, length, [5], samples=True) for request in requests]
    if not runner.steps:
        return [{"model": loaded.name, "length": length, "batch": batch, "refused": runner.graphs.refused}]
    _choose(runner, slices)
    [(_, replay)] = runner.steps.values()
    rounds = 10 if parameter.is_cuda else 1
    with torch.inference_mode():
        times = time_in_turn({"replay": replay, "host": partial(_choose, runner, slices)}, rounds)
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    row: Row = {
        "model": loaded.name,
        "length": length,
        "batch": batch,
        "refused": runner.graphs.refused,
        "replay_ms": times["replay"].median * 1e3,
        "step_ms": times["host"].median * 1e3,
        "times_limit": times["replay"].median * bytes_per_s / (weights + kv),
    }
    if parameter.is_cuda:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            replay()
            torch.cuda.synchronize()
        most = sorted(profile.key_averages(), key=lambda event: event.device_time_total, reverse=True)[:16]
        row["kernels_us"] = {event.key[:80]: [event.count, event.device_time_total] for event in most}
    del runner, pool
    gc.collect()
    return [row]


def pieced_steps(loaded: LoadedModel, chunk: int, batch: int, length: int) -> list[Row]:
    """A prompt's chunk beside so many decodes of ``length`` tokens: replayed in pieces, and launched one by one."""
    import torch

    from service.engine.runner.cuda_graphs import GraphedRunner
    from service.engine.runner.model_runner import ModelRunner
    from service.engine.step import Slice

    parameter = next(loaded.model.parameters())
    pool, requests = _decoding(loaded, batch + 1, max(length, chunk))
    slices = [Slice(request, length, [5], samples=True) for request in requests[1:]]
    slices.append(Slice(requests[0], 0, [5] * chunk, samples=True))
    capture, rows = _capture(parameter), chunk + batch
    pieced = GraphedRunner(loaded.model, pool, [], 1, capture, recorder=capture, sizes=[rows])
    both = {"pieces": pieced, "apart": ModelRunner(loaded.model, pool)}
    runs = {name: partial(_choose, runner, slices) for name, runner in both.items()}
    with torch.inference_mode():
        times = time_in_turn(runs, 5 if parameter.is_cuda else 1)
    row: Row = {"model": loaded.name, "chunk": chunk, "batch": batch, "length": length}
    row |= {"refused": pieced.graphs.refused, "pieced": pieced.graphs.pieced.total()}
    row["kernels"] = sorted(pieced.run(slices).kernels)
    return [row | {f"{name}_ms": spent.median * 1e3 for name, spent in times.items()}]


def selecting_steps(loaded: LoadedModel, policy: str, length: int, batch: int) -> list[Row]:
    """A decode step whose sequences select pages, replayed with the selection inside, beside one that reads all."""
    import torch

    from service.engine.options import parse_policy
    from service.engine.runner.cuda_graphs import Bucket, GraphedRunner
    from service.engine.step import Slice
    from sparse_attn.plan.graph_selection import GraphRule
    from sparse_attn.plan.policy import ModelShape
    from sparse_attn.plan.state import PolicyState

    parameter = next(loaded.model.parameters())
    pool, requests = _decoding(loaded, batch, length)
    pool.keep_stats()
    shape = ModelShape.of_config(loaded.model.config, pool.page_size)
    chosen = parse_policy(policy)
    chosen.check(shape)
    pages = len(requests[0].pages)
    rule = GraphRule.of(chosen, shape)
    runner = GraphedRunner(loaded.model, pool, [Bucket(batch, batch)], pages, _capture(parameter), rule=rule)
    slices = [Slice(request, length, [5], samples=True) for request in requests]

    def decode(sparse: bool) -> list[int]:
        for request in requests:
            request.policy = PolicyState(chosen, shape, length) if sparse else None
        return _choose(runner, slices)

    with torch.inference_mode():
        runs = {"selecting": partial(decode, True), "dense": partial(decode, False)}
        times = time_in_turn(runs, 10 if parameter.is_cuda else 1)
    row: Row = {"model": loaded.name, "policy": policy, "length": length, "batch": batch}
    row |= {"refused": runner.graphs.refused, "replayed": runner.graphs.replayed}
    row["kernels"] = sorted({name for step, _ in runner.selecting.values() for name in step.batch.kernels})
    return [row | {f"{name}_ms": spent.median * 1e3 for name, spent in times.items()}]


def _capture(parameter: torch.Tensor) -> Any:
    """Of steps and pieces; without a GPU what stands in for its graphs."""
    from eval.bench.gpu.tape import Tape
    from service.engine.runner.cuda_graphs import GraphCapture

    return GraphCapture() if parameter.is_cuda else Tape()


def _decoding(loaded: LoadedModel, count: int, length: int) -> tuple[KVPool, list[Request]]:
    """A pool with room for so many requests of ``length`` tokens and a page, whose KV is zero."""
    from service.engine.params import SamplingParams
    from service.engine.request import Request
    from sparse_attn.kv.pool import KVPool

    parameter, size = next(loaded.model.parameters()), 64
    each = length // size + 1
    pool = KVPool(loaded.kv_shape, count * each, size, parameter.dtype, parameter.device)
    requests = [Request(f"r{n}", [5], SamplingParams()) for n in range(count)]
    for n, request in enumerate(requests):
        request.pages = [(page,) for page in range(n * each, (n + 1) * each)]
    return pool, requests


def _choose(runner: ModelRunner, slices: list[Slice]) -> list[int]:
    """The likeliest token after each row, back on the host."""
    return runner.run(slices).logits.argmax(-1).tolist()


def overlap(loaded: LoadedModel, batch: int, length: int, new_tokens: int) -> list[Row]:
    """So many prompts decoded at once, each step read before the next is launched and one step late."""
    from eval.bench.runner import build, plain, random_ids

    prompts = [random_ids(length, n, loaded.vocab_size) for n in range(batch)]
    rows: list[Row] = []
    with build(loaded, batch * (length + new_tokens + 64), max_running=batch) as door:
        for late in (False, True, False, True):
            door.engine.overlaps = late
            before = door.engine.overlap.overlapped
            answers = door.generate(prompts, plain(new_tokens))
            between = [after - at for own in answers for at, after in itertools.pairwise(own.times)]
            rows.append(
                {
                    "batch": batch,
                    "one_step_late": late,
                    "step_ms": statistics.median(between) * 1e3,
                    "overlapped": door.engine.overlap.overlapped - before,
                }
            )
    return rows


def batching(loaded: LoadedModel, batch: int, length: int, new_tokens: int) -> Row:
    """Prompts of up to ``length`` tokens answered at once, and by transformers' continuous batching."""
    from eval.bench.beside_transformers import answer_batch
    from eval.bench.runner import build, plain, random_ids

    prompts = [random_ids(max(4, length * (n + 1) // batch), n, loaded.vocab_size) for n in range(batch)]
    with build(loaded, batch * (length + new_tokens + 64), max_running=batch) as door:
        door.generate(prompts[:1], plain(4))
        began = time.perf_counter()
        ours = [answer.token_ids for answer in door.generate(prompts, plain(new_tokens))]
        taken = time.perf_counter() - began
    model = type(loaded.model)(copy.deepcopy(loaded.model.config)).to(loaded.model.device, loaded.model.dtype).eval()
    model.load_state_dict(loaded.model.state_dict())
    theirs, their_s = answer_batch(model, prompts, new_tokens)
    return {
        "batch": batch,
        "length": length,
        "new_tokens": new_tokens,
        "s": taken,
        "transformers_s": their_s,
        "times_transformers": taken / their_s,
        "same_answers": sum(one == other for one, other in zip(ours, theirs, strict=True)),
    }


def divergences(device: torch.device, dtype: torch.dtype, new_tokens: int, **options: Any) -> list[Row]:
    """The embedded reader with each drafter beside plain decoding: how many tokens are the same before one differs,
    and how far apart the two likeliest were there. ``options`` are EngineConfig's."""
    from eval.bench.runner import agreeing, ask, build, random_ids
    from service.engine.loading.checkpoint import EMBEDDED, load_model
    from service.engine.params import SamplingParams

    loaded = load_model(EMBEDDED, str(dtype).removeprefix("torch."), str(device))
    prompt = random_ids(48, 0, loaded.vocab_size) * 2  # which says everything twice
    rows: list[Row] = []
    with build(loaded, 4096, **options) as engine:
        plain = None
        for drafter in ("none", "prompt_lookup", "suffix"):
            params = SamplingParams(max_tokens=new_tokens, ignore_eos=True, drafter=drafter, logprobs=2)
            found = ask(engine, prompt, params)
            plain = plain or found
            same = agreeing(plain.token_ids, found.token_ids)
            promised = engine.engine.config.batch_invariant or device.type == "cpu"
            row: Row = {
                "model": loaded.name,
                "drafter": drafter,
                "tokens": new_tokens,
                "same": same,
                "promised": promised,
            }
            if same < new_tokens:
                assert plain.logprobs is not None
                (_, first), (_, second) = plain.logprobs[same].top[:2]
                row["gap"] = first - second
            rows.append(row)
    return rows
