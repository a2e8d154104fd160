"""Prompts of the drafters' benchmark: answers that quote, answers in between, and answers with nothing to copy."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

from eval.errors import EvalError
from eval.tasks.quoting import QuoteMaker, read_folder
from service.engine.engine import Engine
from service.engine.request import SamplingParams
from service.models import layout_for
from service.passages import Passage

WORKLOADS = ("quoting", "spec_bench", "nothing")
_SPEC_BENCH = ("rag", "summarization")
_CANDIDATES = 6  # random prompts tried for each one of `nothing`


def make_prompts(
    engine: Engine, workload: str, context: int, count: int, text: Path, spec_bench: Path
) -> list[list[int]]:
    """`count` prompts of about `context` tokens that share all but their ends."""
    if workload == "quoting":
        return _quoting(engine, context, count, text)
    if workload == "spec_bench":
        return _spec_bench(engine, context, count, spec_bench)
    if workload == "nothing":
        return _nothing(engine, context, count)
    raise EvalError(f"unknown workload {workload!r}", hint=f"Choose from {', '.join(WORKLOADS)}.")


def _quoting(engine: Engine, context: int, count: int, text: Path) -> list[list[int]]:
    layout = layout_for(engine.loaded.name, engine.tokenizer)
    maker = QuoteMaker(read_folder(text))

    def prompt(size: int, depth: float) -> list[int]:
        example = maker(random.Random(5), size, depth)
        passage = Passage("context", "context", 0, len(example.context), None, example.context)
        return list(layout.build(example.question or "", [passage]).ids)

    size = max(8, context // 32)
    for _ in range(4):  # sentences differ in length: approach the wanted number of tokens
        size = max(8, size * context // len(prompt(size, 0.5)))
    while len(prompt(size, 0.5)) > context:
        size -= 1
    return [prompt(size, (i + 0.5) / count) for i in range(count)]


def _spec_bench(engine: Engine, context: int, count: int, path: Path) -> list[list[int]]:
    if not path.is_file():
        raise EvalError(f"there is no {path}", hint="Give Spec-Bench's question.jsonl with --spec-bench.")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    turns = [row["turns"][0] for row in rows if row["category"] in _SPEC_BENCH]
    encoded = [engine.tokenizer.encode(turn, add_special_tokens=False) for turn in turns]
    asked, fill = encoded[:count], [token for ids in encoded[count:] for token in ids]
    longest = max(map(len, asked))
    while len(fill) < context:
        fill += fill
    return [fill[: max(0, context - longest)] + ids for ids in asked]


def _nothing(engine: Engine, context: int, count: int) -> list[list[int]]:
    """Random words, of which a model soon repeats some: the endings are kept after which it copies least, by plain
    decoding, from the prompt or from its own answer."""
    rng = random.Random(7)
    vocab = engine.loaded.vocab_size
    ids = [rng.randrange(vocab) for _ in range(context - 8)]
    candidates = [ids + [rng.randrange(vocab) for _ in range(8)] for _ in range(_CANDIDATES * count)]
    params = SamplingParams(max_tokens=32, ignore_eos=True, drafter="none")
    answers = engine.generate(candidates[:1], params) + engine.generate(candidates[1:], params)
    copied = [_copied(ids, answer.token_ids) for ids, answer in zip(candidates, answers, strict=True)]
    best = sorted(range(len(candidates)), key=copied.__getitem__)[:count]
    return [candidates[i] for i in best]


def _copied(prompt: list[int], answer: list[int]) -> int:
    """Tokens of the answer that follow the token before them as they did earlier."""
    seen = set(pairwise(prompt))
    text = [prompt[-1], *answer]
    found = 0
    for pair in pairwise(text):
        found += pair in seen
        seen.add(pair)
    return found
