"""Every drafter against plain decoding: the same weights, the same prompts, the same tokens.

Three workloads, each at a context length: `quoting` (questions over a folder of text, answered by quoting),
`spec_bench` (Spec-Bench's retrieval and summarisation prompts, put one after the other up to the length) and
`nothing` (random words: nothing to copy). A prompt's KV is computed once and found in the prefix cache by
every drafter after the first, so what is timed is decoding. What a drafter does before its first guess (an
index, a draft prompt's prefill) is reported apart, as `start_s`.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from drafters.sampling import noise
from drafters.tree import DraftTree
from eval.errors import EvalError
from eval.results import report_result
from eval.tasks.quoting import QuoteMaker, read_folder
from service.engine.engine import Engine
from service.engine.request import Request, SamplingParams
from service.engine.step import Slice
from service.models import layout_for
from service.passages import Passage

WORKLOADS = ("quoting", "spec_bench", "nothing")
DRAFTERS = (
    "auto",
    "prompt_lookup",
    "suffix",
    "recycling",
    "rag",
    "cascade",
    "fusion",
    "fusion:model=none",
    "goodput:inner=suffix",
    "self_speculation",
)
PLAIN = "none"
_SPEC_BENCH = ("rag", "summarization")


@dataclass(frozen=True)
class Timing:
    """One pass over a cell's prompts.

    Attributes:
        ids: the tokens of each prompt.
        decode_s: seconds from the first token to the last, without `start_s`.
        tokens: tokens after each prompt's first.
        drafting: DraftingStats as a dictionary, summed.
    """

    ids: list[list[int]]
    decode_s: float
    tokens: int
    start_s: float
    drafting: dict[str, Any]

    @property
    def rate(self) -> float:
        return self.tokens / self.decode_s


def run(
    model: str = "embedded",
    contexts: Sequence[int] = (2048, 8192, 16384, 32768),
    workloads: Sequence[str] = WORKLOADS,
    drafters: Sequence[str] = DRAFTERS,
    temperatures: Sequence[float] = (0.0, 0.8),
    batches: Sequence[int] = (1,),
    text: Path = Path("../shared/corpus"),
    spec_bench: Path = Path("../shared/spec_bench/question.jsonl"),
    prompts: int = 4,
    max_tokens: int = 64,
    dtype: str = "float32",
    device: str = "cpu",
    kv_memory: int = 4 << 30,
    peer: bool = False,
) -> dict[str, Any]:
    """Figures of every cell (workload x context x temperature x batch x drafter)."""
    engine = Engine.from_pretrained(model, dtype=dtype, device=device, kv_memory=kv_memory, max_running=64)
    cells: list[dict[str, Any]] = []
    forwards = []
    peers = []
    for context in contexts:
        if context + max_tokens > engine.max_model_len:
            raise EvalError(f"{model} reads {engine.max_model_len} tokens, {context} were asked for")
        for workload in workloads:
            warm, *asked = make_prompts(engine, workload, context, prompts + 1, text, spec_bench)
            stop_freely = workload == "quoting"
            for temperature in temperatures:
                params = SamplingParams(
                    max_tokens=max_tokens, temperature=temperature, seed=1, ignore_eos=not stop_freely
                )
                for batch in batches:
                    place = {
                        "workload": workload,
                        "context": context,
                        "temperature": temperature,
                        "batch": batch,
                    }
                    measured = cell(engine, warm, asked, params, drafters, batch)
                    cells += [place | figures for figures in measured]
            if peer:
                peers.append(
                    {"workload": workload, "context": context}
                    | transformers_prompt_lookup(engine, asked, max_tokens, stop_freely)
                )
        forwards.append({"context": context} | tree_forwards(engine, asked[0]))
    return {
        "model": model,
        "dtype": dtype,
        "device": device,
        "cells": cells,
        "forwards": forwards,
        "peers": peers,
        "kernels": sorted(engine.kernels),
    }


def cell(
    engine: Engine,
    warm: list[int],
    asked: Sequence[list[int]],
    params: SamplingParams,
    drafters: Sequence[str],
    batch: int,
) -> list[dict[str, Any]]:
    """Plain decoding before, between and after the drafters; a drafter is held to the median of them.

    Every drafter starts without what earlier ones learned of the texts, and reads one prompt, `warm`, before its
    time is taken: its answer is none of those asked for.
    """
    timed(engine, [warm, *asked], params, PLAIN, 1)  # the prompts' KV, and the kernels' first use
    plain = [timed(engine, asked, params, PLAIN, batch)]
    guessed: list[tuple[str, Timing]] = []
    for i, drafter in enumerate(drafters):
        engine.drafting.resources.forget()
        timed(engine, [warm], params, drafter, 1)
        guessed.append((drafter, timed(engine, asked, params, drafter, batch)))
        if i % 4 == 3 or i + 1 == len(drafters):
            plain.append(timed(engine, asked, params, PLAIN, batch))
    rate = statistics.median(timing.rate for timing in plain)
    figures: list[dict[str, Any]] = [
        {
            "drafter": PLAIN,
            "tokens_per_s": rate,
            "tokens": plain[0].tokens,
            "spread": max(t.rate for t in plain) / min(t.rate for t in plain),
        }
    ]
    for drafter, timing in guessed:
        figures.append(
            {
                "drafter": drafter,
                "tokens_per_s": timing.rate,
                "speedup": timing.rate / rate,
                "start_s": timing.start_s,
                "speedup_with_start": timing.tokens / (timing.decode_s + timing.start_s) / rate,
                "identical": timing.ids == plain[0].ids,
                "divergences": divergences(engine, asked, plain[0].ids, timing.ids, params),
                **timing.drafting,
            }
        )
    return figures


def timed(engine: Engine, asked: Sequence[list[int]], params: SamplingParams, drafter: str, batch: int) -> Timing:
    """Decode the prompts, `batch` of them at a time (a prompt is repeated, under other seeds, to fill a
    batch)."""
    ids: list[list[int]] = []
    decode_s = start_s = 0.0
    tokens = 0
    drafting: dict[str, Any] = {}
    queue = list(asked) if batch == 1 else [asked[i % len(asked)] for i in range(batch)]
    for first in range(0, len(queue), batch):
        group = queue[first : first + batch]
        names = [
            engine.add_request(prompt, _with(params, drafter, params.seed + first + i))
            for i, prompt in enumerate(group)
        ]
        parts: dict[str, list[int]] = {name: [] for name in names}
        began: float | None = None
        before = 0
        while engine.has_work:
            for output in engine.step():
                parts[output.request_id] += output.token_ids
                if output.finished:
                    figures = output.stats.get("drafting", {})
                    start_s += figures.get("starting_seconds", 0.0)
                    _sum(drafting, figures)
            if began is None and all(parts.values()):
                began, before = time.perf_counter(), sum(map(len, parts.values()))
        decode_s += time.perf_counter() - (began or 0.0)
        tokens += sum(map(len, parts.values())) - before
        ids += [parts[name] for name in names]
    return Timing(ids, max(decode_s - start_s, 1e-9), tokens, start_s, _figures(drafting))


def make_prompts(
    engine: Engine, workload: str, context: int, count: int, text: Path, spec_bench: Path
) -> list[list[int]]:
    """`count` prompts of about `context` tokens that share all but their ends."""
    if workload == "quoting":
        return _quoting(engine, context, count, text)
    if workload == "spec_bench":
        return _spec_bench(engine, context, count, spec_bench)
    if workload == "nothing":
        rng = random.Random(7)
        ids = [rng.randrange(engine.loaded.vocab_size) for _ in range(context - 8)]
        return [ids + [rng.randrange(engine.loaded.vocab_size) for _ in range(8)] for _ in range(count)]
    raise EvalError(f"unknown workload {workload!r}", hint=f"Choose from {', '.join(WORKLOADS)}.")


def divergences(
    engine: Engine,
    asked: Sequence[list[int]],
    plain: Sequence[list[int]],
    guessed: Sequence[list[int]],
    params: SamplingParams,
) -> list[dict[str, Any]]:
    """Where a drafter's tokens first differ from plain decoding's, and how close the two candidates were."""
    found: list[dict[str, Any]] = []
    for i, (expected, got) in enumerate(zip(plain, guessed, strict=True)):
        if expected == got:
            continue
        at = next((j for j, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
        if at is None:
            found.append({"prompt": i, "at": min(len(expected), len(got)), "gap": None})
            continue
        prompt = asked[i % len(asked)] + expected[:at]
        gap = perturbed_gap(engine, prompt, expected[at], got[at], params, params.seed + i)
        found.append({"prompt": i, "at": at, "gap": gap})
    return found


def perturbed_gap(
    engine: Engine, prompt: list[int], one: int, other: int, params: SamplingParams, seed: int
) -> float | None:
    """The difference of two candidates' perturbed scores after a prompt; None where one is not among the best
    20."""
    asked = SamplingParams(max_tokens=1, logprobs=20, ignore_eos=True, drafter=PLAIN)
    result = engine.generate([prompt], asked)[0]
    best = dict(result.logprobs[0].top) if result.logprobs else {}
    if one not in best or other not in best:
        return None
    if params.temperature == 0:
        return best[one] - best[other]
    keys = torch.tensor([seed]), torch.tensor([len(prompt)])
    g = noise(keys[0], keys[1], torch.tensor([one, other]))
    return (best[one] - best[other]) / params.temperature + float(g[0] - g[1])


def tree_forwards(engine: Engine, prompt: list[int]) -> dict[str, Any]:
    """Forwards over trees of 0, 8 and 32 nodes behind a prompt, against the machine's two limits."""
    read, multiply = machine_limits(engine.config.device)
    request = Request("bench", prompt, SamplingParams())
    hit = engine.blocks.match([*prompt, 0], engine.salt)
    length = len(hit.pages) * engine.config.page_size
    request.pages = [*hit.pages, *engine.blocks.allocate(1)]
    config = engine.loaded.model.config.get_text_config()
    weights = sum(p.numel() for p in engine.loaded.model.parameters())
    kv_bytes = engine.loaded.kv_shape.bytes_per_token(torch.float32) * length
    figures: dict[str, Any] = {"read_bytes_per_s": read, "flops_per_s": multiply, "rows": []}
    try:
        for nodes in (0, 8, 32):
            parents = [-1 if i == 0 else (i - 1) // 2 for i in range(nodes)]
            tree = DraftTree.of(prompt[:nodes], parents) if nodes else None
            part = Slice(request, length, [prompt[-1]], True, tree=tree)
            seconds = min(_seconds(lambda part=part: engine.runner.run([part])) for _ in range(7))
            rows = nodes + 1
            heads = config.num_attention_heads * config.head_dim
            flops = 2 * rows * weights + 4 * rows * length * heads * config.num_hidden_layers
            limit = max((kv_bytes + 4 * weights) / read, flops / multiply)
            figures["rows"].append(
                {"nodes": nodes, "seconds": seconds, "limit_s": limit, "over_limit": seconds / limit}
            )
    finally:
        engine.blocks.release(request.pages)
    return figures


def machine_limits(device: str) -> tuple[float, float]:
    """Bytes per second read and float32 FLOPs per second multiplied, both measured now."""
    big = torch.ones(1 << 26, device=device)
    read = big.numel() * 4 / min(_seconds(lambda: big.sum()) for _ in range(5))
    a = torch.randn(1536, 1536, device=device)
    multiply = 2 * 1536**3 / min(_seconds(lambda: a @ a) for _ in range(5))
    return read, multiply


def transformers_prompt_lookup(
    engine: Engine, asked: Sequence[list[int]], max_tokens: int, stop_freely: bool
) -> dict[str, Any]:
    """transformers' own decoding and prompt lookup over the same prompts, greedy, the prompt's KV computed
    before."""
    import copy

    from transformers import AutoModelForCausalLM, DynamicCache

    from service.reader import MODEL_DIR

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


def chart(figures: dict[str, Any], path: Path) -> None:
    """Draw speed-up and accepted length of every drafter, a bar a context, over the batch-1 cells of each workload."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [cell for cell in figures["cells"] if cell["batch"] == 1 and cell["drafter"] != PLAIN]
    groups = list(dict.fromkeys((cell["workload"], cell["temperature"]) for cell in cells))
    contexts = sorted({cell["context"] for cell in cells})
    names = list(dict.fromkeys(cell["drafter"] for cell in cells))
    shown = (("speedup", "speed-up over plain"), ("accepted_length", "accepted length"))
    size = (5 * len(shown), 1 + 0.4 * len(names) * len(groups))
    figure, axes = pyplot.subplots(len(groups), len(shown), figsize=size, squeeze=False, sharey=True)
    for row, group in zip(axes, groups, strict=True):
        for axis, (key, label) in zip(row, shown, strict=True):
            for i, context in enumerate(contexts):
                found = {
                    cell["drafter"]: cell[key]
                    for cell in cells
                    if (cell["workload"], cell["temperature"]) == group and cell["context"] == context
                }
                at = [n + (i - (len(contexts) - 1) / 2) * 0.8 / len(contexts) for n in range(len(names))]
                axis.barh(at, [found.get(n, 0) for n in names], 0.8 / len(contexts), label=f"{context} tokens")
            axis.axvline(1.0, color="black", linewidth=0.6)
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.set_xlabel(label, fontsize=8)
            axis.set_title(f"{group[0]}, temperature {group[1]:g}", fontsize=9)
    axes[0][0].invert_yaxis()  # shared by all
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


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


def _with(params: SamplingParams, drafter: str, seed: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        seed=seed,
        ignore_eos=params.ignore_eos,
        drafter=drafter,
    )


def _sum(total: dict[str, Any], figures: dict[str, Any]) -> None:
    for key, value in figures.items():
        if isinstance(value, dict):
            _sum(total.setdefault(key, {}), value)
        elif isinstance(value, (int, float)):
            total[key] = total.get(key, 0) + value


def _figures(drafting: dict[str, Any]) -> dict[str, Any]:
    if not drafting.get("steps"):
        return {}
    return drafting | {
        "accepted_length": drafting["emitted"] / drafting["steps"],
        "acceptance_rate": drafting["accepted"] / max(drafting["drafted"], 1),
    }


def _common_prefix(asked: Sequence[list[int]]) -> int:
    shortest = min(map(len, asked)) - 1
    return next((i for i in range(shortest) if len({ids[i] for ids in asked}) > 1), shortest)


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def command(
    model: Annotated[str, typer.Option(help="Folder, hub id or 'embedded'.")] = "embedded",
    context: Annotated[list[int] | None, typer.Option(help="Prompt tokens; may be repeated.")] = None,
    workload: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(WORKLOADS)}.")] = None,
    drafter: Annotated[list[str] | None, typer.Option(help="NAME[:key=value,…]; may be repeated.")] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="0 is greedy; may be repeated.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Sequences at a time; may be repeated.")] = None,
    text: Annotated[Path, typer.Option(help="Folder of text for the quoting workload.")] = Path("../shared/corpus"),
    spec_bench: Annotated[Path, typer.Option(help="Spec-Bench's question.jsonl.")] = Path(
        "../shared/spec_bench/question.jsonl"
    ),
    prompts: Annotated[int, typer.Option(help="Prompts a cell.")] = 4,
    max_tokens: Annotated[int, typer.Option(help="Tokens a prompt.")] = 64,
    dtype: Annotated[str, typer.Option(help="Of the model.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    peer: Annotated[bool, typer.Option(help="Also time transformers' prompt lookup.")] = False,
    picture: Annotated[Path | None, typer.Option(help="File for a chart.")] = None,
    name: Annotated[str, typer.Option(help="Of the file in eval/results.")] = "drafters",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures.")] = False,
    output: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Time every drafter against plain decoding and check that the tokens are the same."""
    figures = run(
        model=model,
        contexts=context or (2048, 8192, 16384, 32768),
        workloads=workload or WORKLOADS,
        drafters=drafter or DRAFTERS,
        temperatures=temperature or (0.0, 0.8),
        batches=batch or (1,),
        text=text,
        spec_bench=spec_bench,
        prompts=prompts,
        max_tokens=max_tokens,
        dtype=dtype,
        device=device,
        peer=peer,
    )
    if picture is not None:
        chart(figures, picture)
    report_result(name, figures, as_json=as_json, output=output)
