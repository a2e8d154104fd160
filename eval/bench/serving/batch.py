"""Offline throughput: many prompts at once through the engine, transformers' continuous batching and OpenVINO GenAI's.

Also tells what share of a decode step at batch 16 goes to the scheduler and the other bookkeeping.
"""

from __future__ import annotations

import random
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
from typer import Option

from eval.bench.base import BenchOptions, Figures, NewTokens, bench
from eval.bench.beside_transformers import VOCABULARY, answer_batch, random_llama
from eval.bench.runner import build, plain, random_ids
from eval.bench.timer import in_turn, ratio, timed
from eval.peers.client import PEERS, Worker
from eval.peers.convert import converted
from service.engine.loading.checkpoint import prepare

MAX_LENGTH = 1 << 17
KV_MEMORY = 3 << 30
PAGE = 64

Answers = tuple[list[list[int]], float]
"""Token ids, and the seconds they took."""


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Throughput of many prompts at once, against transformers' continuous batching and OpenVINO GenAI's."""

    requests: Annotated[int, Option(min=1, help="Prompts.")] = 32
    longest: Annotated[int, Option(min=64, help="Longest prompt, in tokens.")] = 1024
    new_tokens: NewTokens = 64
    runs: Annotated[int, Option(min=1, help="Runs, of which the median counts.")] = 3


def trace(requests: int, shortest: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Prompts of uniformly drawn lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCABULARY) for _ in range(rng.randint(shortest, longest))] for _ in range(requests)]


def run(options: Options) -> Figures:
    """All on the same weights and trace, in turn, medians of ``runs``; fp32, greedy, no end of sequence.

    Each is warmed by one prompt.

    Raises:
        EvalError: OpenVINO GenAI is not set up, or failed.
    """
    prompts, new_tokens = trace(options.requests, 64, options.longest), options.new_tokens
    shares: list[float] = []

    def folio() -> Answers:
        loaded = prepare("random-llama-27m", random_llama(MAX_LENGTH))
        with build(loaded, 0, kv_memory=KV_MEMORY, max_running=16) as engine:
            engine.generate(prompts[:1], plain(2))
            found, taken = timed(lambda: engine.generate(prompts, plain(new_tokens)))
        shares.append(bookkeeping_share())
        return [one.token_ids for one in found], taken

    with ExitStack() as stack:
        openvino = _openvino(stack, torch.get_num_threads(), options.longest + new_tokens)
        openvino.batch(prompts[:1], 2)
        ways = {
            "folio": folio,
            "transformers": lambda: answer_batch(random_llama(MAX_LENGTH), prompts, new_tokens),
            "openvino": lambda: openvino.batch(prompts, new_tokens),
        }
        found = in_turn(ways, options.runs)
    tokens = options.requests * new_tokens
    taken = {name: [one for _, one in answers] for name, answers in found.items()}
    last = {name: answers[-1][0] for name, answers in found.items()}
    peers = ("transformers", "openvino")
    return {
        **options.told("requests", "new_tokens", "runs"),
        "prompt_tokens": sum(map(len, prompts)),
        "tokens_per_s": {name: tokens / median(own) for name, own in taken.items()},
        "over": {name: ratio(taken[name], taken["folio"]) for name in peers},
        "requests_with_other_tokens": {
            name: sum(a != b for a, b in zip(last[name], last["folio"], strict=True)) for name in peers
        },
        "bookkeeping_share_of_decode_step_at_16": median(shares),
    }


def bookkeeping_share(batch: int = 16, context: int = 2048, steps: int = 40) -> float:
    """Share of a decode step that is not the forward and the choice of tokens, at a full batch.

    The prompts are whole pages and one token, which are found in the prefix cache, so that every step decodes.
    """
    loaded = prepare("random-llama-27m", random_llama(MAX_LENGTH))
    prompts = [random_ids(context + 1, seed, VOCABULARY) for seed in range(batch)]
    room = batch * (context + steps + 2 * PAGE)
    with build(loaded, room, max_running=batch, prefix_cache=True, page_size=PAGE) as engine:
        engine.generate(prompts, plain(1))
        before = engine.engine.stats()
        engine.generate(prompts, plain(steps))
        after = engine.engine.stats()
    step_s, forward_s = (after[name] - before[name] for name in ("step_s", "forward_s"))
    return (step_s - forward_s) / step_s


def _openvino(stack: ExitStack, threads: int, context: int) -> Worker:
    """OpenVINO GenAI's continuous batching with the same weights loaded."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    random_llama(MAX_LENGTH).save_pretrained(folder)
    peer = PEERS["openvino"]
    worker = stack.enter_context(Worker(peer))
    worker.load(converted(folder, peer.worker), threads=threads, context=context)
    return worker


command = bench(Options, run, "batch")
