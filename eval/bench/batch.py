"""Offline throughput: many prompts at once through the engine, transformers' continuous batching and OpenVINO GenAI's.

Also tells what share of a decode step at batch 16 goes to the scheduler and the other bookkeeping.
"""

from __future__ import annotations

import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from eval.bench._beside_transformers import VOCABULARY, random_llama
from eval.figures import report_result
from eval.peers.client import PEERS, Worker
from eval.peers.convert import converted

MAX_LENGTH = 1 << 17


def trace(requests: int, shortest: int, longest: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Prompts of uniformly drawn lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(3, vocabulary) for _ in range(rng.randint(shortest, longest))] for _ in range(requests)]


def run(
    requests: int = 32, shortest: int = 64, longest: int = 1024, new_tokens: int = 64, runs: int = 3, seed: int = 0
) -> dict[str, Any]:
    """All on the same weights and trace, alternating, medians of ``runs``; fp32, greedy, no end of sequence.

    Each is warmed by one prompt.

    Raises:
        EvalError: OpenVINO GenAI is not set up, or failed.
    """
    import torch

    from service.engine.config import EngineConfig
    from service.engine.engine import Engine
    from service.engine.loading.checkpoint import prepare
    from service.engine.request import SamplingParams

    prompts = trace(requests, shortest, longest, VOCABULARY, seed)
    params = SamplingParams(max_tokens=new_tokens, ignore_eos=True, drafter="none", attention="dense")
    config = EngineConfig(kv_memory=3 << 30, prefix_cache=False, max_running=16)
    seconds: dict[str, list[float]] = {"folio": [], "transformers": [], "openvino": []}
    differing = {"transformers": 0, "openvino": 0}
    shares = []
    with ExitStack() as stack:
        openvino = _openvino(stack, torch.get_num_threads(), longest + new_tokens)
        openvino.batch(prompts[:1], 2)
        for _ in range(runs):
            engine = Engine(prepare("random-llama-27m", random_llama(MAX_LENGTH)), config)
            engine.generate(prompts[:1], SamplingParams(max_tokens=2, ignore_eos=True))
            began = time.perf_counter()
            results = [result.token_ids for result in engine.generate(prompts, params)]
            seconds["folio"].append(time.perf_counter() - began)
            shares.append(bookkeeping_share(engine))
            peers = {
                "transformers": _generate_batch(prompts, new_tokens),
                "openvino": openvino.batch(prompts, new_tokens),
            }
            for name, (outputs, taken) in peers.items():
                seconds[name].append(taken)
                differing[name] = sum(a != b for a, b in zip(outputs, results, strict=True))
    tokens = requests * new_tokens
    return {
        "requests": requests,
        "prompt_tokens": sum(map(len, prompts)),
        "new_tokens": new_tokens,
        "runs": runs,
        "tokens_per_s": {name: tokens / median(taken) for name, taken in seconds.items()},
        "over": {
            name: median(b / a for a, b in zip(seconds["folio"], seconds[name], strict=True)) for name in differing
        },
        "requests_with_other_tokens": differing,
        "bookkeeping_share_of_decode_step_at_16": median(shares),
    }


def bookkeeping_share(engine: Any, batch: int = 16, context: int = 2048, steps: int = 40) -> float:
    """Share of a decode step that is not the forward and the choice of tokens, at a full batch."""
    from service.engine.request import SamplingParams

    params = SamplingParams(max_tokens=steps + 8, ignore_eos=True, drafter="none", attention="dense")
    for prompt in trace(batch, context, context, VOCABULARY, seed=1):
        engine.add_request(prompt, params)
    while any(request.num_pending > 1 for request in engine.scheduler.running) or engine.scheduler.waiting:
        engine.step()
    before = (engine.totals.step_s, engine.totals.forward_s)
    for _ in range(steps):
        engine.step()
    step_s, forward_s = engine.totals.step_s - before[0], engine.totals.forward_s - before[1]
    engine.reset()
    return (step_s - forward_s) / step_s


def _openvino(stack: ExitStack, threads: int, context: int) -> Worker:
    """OpenVINO GenAI's continuous batching with the same weights loaded."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    random_llama(MAX_LENGTH).save_pretrained(folder)
    peer = PEERS["openvino"]
    worker = stack.enter_context(Worker(peer))
    worker.load(converted(folder, peer.worker), threads=threads, context=context)
    return worker


def _generate_batch(prompts: list[list[int]], new_tokens: int) -> tuple[list[list[int]], float]:
    """What transformers' continuous batching generated, and the seconds it took."""
    from transformers import GenerationConfig

    model = random_llama(MAX_LENGTH)
    model.set_attn_implementation("sdpa")
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    model.generate_batch(inputs=prompts[:1], generation_config=config, progress_bar=False)
    began = time.perf_counter()
    outputs = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
    seconds = time.perf_counter() - began
    by_number = sorted(outputs.values(), key=lambda output: int("".join(filter(str.isdigit, output.request_id)) or 0))
    return [list(output.generated_tokens) for output in by_number], seconds


def command(
    requests: Annotated[int, typer.Option(min=1, help="Prompts.")] = 32,
    longest: Annotated[int, typer.Option(min=64, help="Longest prompt, in tokens.")] = 1024,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens generated for each.")] = 64,
    runs: Annotated[int, typer.Option(min=1, help="Runs, of which the median counts.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Result file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Throughput of many prompts at once, against transformers' continuous batching and OpenVINO GenAI's."""
    figures = run(requests=requests, longest=longest, new_tokens=new_tokens, runs=runs)
    report_result("batch", figures, as_json=as_json, output=output)
