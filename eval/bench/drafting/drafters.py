"""Every drafter against plain decoding: the same weights, the same prompts, the same tokens.

Three workloads, each at a context length: `quoting` (questions over a folder of text, those of many that the model
answers by quoting), `spec_bench` (Spec-Bench's retrieval and summarisation prompts, put one after the other up to the
length) and `nothing` (random words, and those endings of many after which the answer repeats least); and, if asked for,
`questions` (those of `quoting`, whatever the model answers). A prompt's KV is computed once and found in the prefix
cache by every drafter, so what is timed is decoding. What a drafter does before its first guess (an index, a draft
prompt's prefill) is reported apart, as `start_s`.

A cell is a workload, a context, a temperature, a batch and a dtype. Plain decoding and all drafters take turns in it at
every prompt, or batch of prompts, so that a change of the machine's pace meets all of them, and go through the prompts
several rounds; a drafter's speed-up is the median of its ratios to plain decoding of the same round. `auto` and all
that is nearly as fast as the fastest then take four times as many rounds more, and `over_best_single` is the least of
the medians of the ratios of `auto` to another drafter: a round varies by more than the difference asked for.
The table is made in pieces: cells that the file of figures has are kept, and the file is written after each new one.

Drafters that want a draft model (`draft_model`, `adaptive`, `multi_round`) take part if one is given. The tokens of
`multi_round` are those of plain decoding when greedy alone; a sampled cell of it is not `identical`.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from typer import Option

from drafters.heads.folder import is_head
from drafters.learned import LearnedByOwner
from drafters.training.distill import DISTILLATION
from drafters.training.run import FIGURES as TRAINING
from eval.bench import beside_transformers
from eval.bench.base import BenchOptions, Cells, Figures, Model, Result, Row, bench
from eval.bench.drafting.forwards import tree_forwards
from eval.bench.drafting.prompts import ANSWERED, CATEGORY, GROUPS, WORKLOADS, make_prompts
from eval.bench.drafting.timing import PLAIN, Timing, divergences, timed
from eval.bench.timer import Times, in_turn, ratio
from eval.errors import EvalError
from eval.figures import command_line, git_sha, named
from eval.tasks.quoting import read_folder
from retrieval.index.token_store import TokenStore
from service.engine.async_engine import AsyncEngine
from service.engine.params import DraftSources, SamplingParams

DRAFTERS = (
    "auto",
    "prompt_lookup",
    "suffix",
    "recycling",
    "datastore",
    "rag",
    "cascade",
    "fusion",
    "goodput:inner=suffix",
    "self_speculation",
    "overlap:inner=rag",
)
_TRAINED = ("trained:paced=false", "trained", "suffix", "fusion:model=trained,always=true", "auto")
_WITH_DRAFT_MODEL = ("draft_model", "adaptive", "multi_round", "overlap:inner=draft_model")
_CLOSE = 0.8  # of the fastest drafter's tokens per second: those above it are worth more rounds …
_MORE = 4  # … so many times as many
_WITH_FORWARDS = ("rag", "cascade", "fusion", "self_speculation", "draft_model", "overlap", "adaptive", "multi_round")


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Time every drafter against plain decoding and check that the tokens are the same.

    Cells that the file has are kept: a long table can be made in pieces.
    """

    model: Model = "embedded"
    draft_model: Annotated[
        str | None, Option(help=f"Folder or hub id; with it also {', '.join(_WITH_DRAFT_MODEL)}.")
    ] = None
    context: Annotated[tuple[int, ...], Option(help="Prompt tokens; may be repeated.")] = (2048, 8192, 16384, 32768)
    workload: Annotated[tuple[str, ...], Option(help=f"Of {', '.join(WORKLOADS)}, {CATEGORY}NAME.")] = WORKLOADS[:3]
    drafter: Annotated[
        tuple[str, ...], Option(help="NAME[:key=value,…]; may be repeated; by default all that there is a model for.")
    ] = ()
    temperature: Annotated[tuple[float, ...], Option(help="0 is greedy; may be repeated.")] = (0.0, 0.8)
    batch: Annotated[tuple[int, ...], Option(help="Sequences at a time; may be repeated.")] = (1,)
    text: Annotated[Path, Option(help="Folder of text for the quoting workload.")] = Path("../shared/corpus")
    spec_bench: Annotated[Path, Option(help="Prompts: Spec-Bench's question.jsonl, or SPEED-Bench's rows.")] = Path(
        "../shared/spec_bench/question.jsonl"
    )
    prompts: Annotated[int, Option(help="Prompts a cell.")] = 4
    max_tokens: Annotated[int, Option(help="Tokens a prompt.")] = 64
    rounds: Annotated[int, Option(help="Turns that plain decoding and the drafters take in a cell.")] = 3
    dtype: Annotated[str, Option(help="Of the model.")] = "float32"
    device: Annotated[str, Option(help="cpu or cuda.")] = "cpu"
    kv_memory: Annotated[int, Option(help="Bytes for KV.")] = 4 << 30
    peer: Annotated[bool, Option(help="Also time transformers' prompt lookup.")] = False
    forwards: Annotated[bool, Option(help="Also time forwards over trees.")] = True
    limit: Annotated[float | None, Option(help="Begin no cell after so many seconds.")] = None
    fresh: Annotated[bool, Option(help="Forget the cells that the file has.")] = False
    picture: Annotated[Path | None, Option(help="File for a chart of all cells of the file.")] = None
    only: Annotated[
        str, Option(help="trained: the trained drafter of --draft-model on Spec-Bench's six groups, greedily.")
    ] = ""
    name: Annotated[str, Option(help="Of the file in eval/results.")] = "drafters"


def measure(options: Options) -> Figures:
    """The command: what the file has, what is missing of it, and the chart."""
    if options.only:
        options = _only(options)
    result = Result(options.name, options.output)
    figures = run(options, None if options.fresh else result.earlier(), result.save)
    if options.picture is not None:
        chart(figures, options.picture)
    return figures


def _only(options: Options) -> Options:
    """The options of the table of trained drafters, where nothing else is asked for; head after head fills it."""
    if options.only != "trained" or options.draft_model is None or not is_head(options.draft_model):
        raise EvalError("--only takes trained, with the folder of a trained drafter for --draft-model")
    asked = {key: value for key, value in vars(options).items() if value != getattr(Options, key, None)}
    table: dict[str, Any] = {
        "context": (256, 2048, 7168),
        "workload": tuple(GROUPS),
        "drafter": _TRAINED,
        "temperature": (0.0,),
        "forwards": False,
        "name": "drafters_trained",
    }
    return replace(options, **{key: value for key, value in table.items() if key not in asked})


def run(
    options: Options, known: Figures | None = None, save: Callable[[Figures], object] = lambda figures: None
) -> Figures:
    """Figures of every cell; those of `known` are kept, and `save` is called with all of them after each new one."""
    figures: Figures = known or {"model": named(options.model), "device": options.device}
    if options.draft_model and (trained := Path(options.draft_model, DISTILLATION)).is_file():
        figures["distillation"] = json.loads(trained.read_text(encoding="utf-8"))
    if options.draft_model and (trained := Path(options.draft_model, TRAINING)).is_file():
        figures.setdefault("training", {})[Path(options.draft_model).name] = json.loads(trained.read_text("utf-8"))
    with AsyncEngine.from_pretrained(
        options.model,
        draft_model=options.draft_model,
        dtype=options.dtype,
        device=options.device,
        kv_memory=options.kv_memory,
        max_running=64,
        attention="dense",
    ) as engine:
        most = engine.engine.max_model_len
        if longest := next((context for context in options.context if context + options.max_tokens > most), None):
            raise EvalError(f"{options.model} reads {most} tokens, {longest} were asked for")

        def keep() -> None:
            figures["kernels"] = sorted({*figures.get("kernels", []), *engine.engine.kernels})
            save(figures)

        kinds = ("cells", "forwards", "peers")
        _fill(engine, options, *(Cells(figures.setdefault(kind, []), keep) for kind in kinds))
    return figures


def _fill(engine: AsyncEngine, options: Options, cells: Cells, forwards: Cells, peers: Cells) -> None:
    """Add what the tables lack, until the time is up."""
    ends = time.perf_counter() + (options.limit if options.limit is not None else float("inf"))
    drafters = options.drafter or DRAFTERS + (_WITH_DRAFT_MODEL if options.draft_model else ())
    with_store = any(name.startswith("datastore") for name in drafters) and engine.engine.tokenizer is not None
    store = _datastore(engine, options.text) if with_store else None
    stamp = {"command": command_line(), "git": git_sha()}
    for context in options.context:
        place: Row = {"context": context, "dtype": options.dtype}
        if options.forwards and not forwards.at(**place):
            forwards.add(place | tree_forwards(engine, context) | stamp)
    for context, workload in product(options.context, options.workload):
        place = {"workload": workload, "context": context, "dtype": options.dtype, **_head(engine)}
        wanted = [
            place | {"temperature": temperature, "batch": batch}
            for temperature, batch in product(options.temperature, options.batch)
            if not cells.at(**place, temperature=temperature, batch=batch)
        ]
        with_peer = options.peer and not peers.at(**place)
        if not (wanted or with_peer):
            continue
        made = make_prompts(engine, workload, context, options.prompts + 1, options.text, options.spec_bench)
        warm, *asked = made.ids
        stops, rounds = workload in ANSWERED, options.rounds
        about = {"prompts": len(asked), "chosen_from": made.chosen_from, "max_tokens": options.max_tokens}
        about |= {"rounds": rounds}  # of a drafter that is worth more of them its row tells how many
        params = SamplingParams(max_tokens=options.max_tokens, seed=1, ignore_eos=not stops)
        for one in wanted:
            if time.perf_counter() > ends:
                return
            at = replace(params, temperature=one["temperature"])
            measured = cell(engine, warm, asked, at, drafters, one["batch"], rounds, store)
            cells.add(*(one | about | row | stamp for row in measured))
        if with_peer:
            peers.add(place | about | beside(engine, asked, options.max_tokens, stops, rounds) | stamp)


def _head(engine: AsyncEngine) -> Row:
    """The trained drafter that the engine has, as a cell names it."""
    head = engine.engine.drafting.resources.head
    if head is None:
        return {}
    return {"head": head.name, "window": head.config.window, "parameters": head.num_parameters}


def cell(
    engine: AsyncEngine,
    warm: list[int],
    asked: Sequence[list[int]],
    params: SamplingParams,
    drafters: Sequence[str],
    batch: int,
    rounds: int = 3,
    store: TokenStore | None = None,
) -> list[Row]:
    """Plain decoding and every drafter in turn, `rounds` times; then the fastest of them. Prompts are repeated, under
    other seeds, to fill the last batch.

    A drafter starts every round without what was learned of the texts, and reads one prompt, `warm`, before its time
    is taken: its answer is none of those asked for.
    """
    for prompt in (warm, *asked):  # the prompts' KV, and the kernels' first use
        timed(engine, [prompt], params, PLAIN)
    asked = [asked[i % len(asked)] for i in range(-(-len(asked) // batch) * batch)]
    taken: dict[str, list[Timing]] = {name: [] for name in (PLAIN, *drafters)}

    def take_turns(names: Sequence[str], turns: range) -> None:
        for turn in turns:
            timings = _in_turn(engine, names, warm, asked, params, batch, store, random.Random(turn))
            for name, timing in timings.items():
                taken[name].append(timing)

    take_turns(list(taken), range(rounds))
    middle = {name: median(timing.rate for timing in timings) for name, timings in taken.items()}
    close = [name for name, rate in middle.items() if name == "auto" or rate >= _CLOSE * max(middle.values())]
    if "auto" in close and len(close) > 1:
        take_turns(close, range(rounds, rounds + _MORE * rounds))
    plain = taken.pop(PLAIN)
    rates = Times(timing.rate for timing in plain)
    measured: list[Row] = [
        {"drafter": PLAIN, "tokens_per_s": rates.median, "tokens": plain[0].tokens, "spread": rates.spread}
    ]
    for name, timings in taken.items():
        measured.append({"drafter": name, "rounds": len(timings)} | _compared(name, timings, plain))
        measured[-1]["identical"] = all(timing.ids == plain[0].ids for timing in timings)
        measured[-1]["divergences"] = divergences(engine, asked, plain[0].ids, timings[-1].ids, params)
    for one in measured:
        if one["drafter"] == "auto" and len(taken) > 1:
            one["over_best_single"] = min(_ratio(taken["auto"], own) for name, own in taken.items() if name != "auto")
    return measured


def _in_turn(
    engine: AsyncEngine,
    names: Sequence[str],
    warm: list[int],
    asked: Sequence[list[int]],
    params: SamplingParams,
    batch: int,
    store: TokenStore | None,
    order: random.Random,
) -> dict[str, Timing]:
    """One round: at each prompt, or batch of prompts, every drafter in an order of its own."""
    drafting = engine.engine.drafting
    shared = drafting.learned
    taught = {name: LearnedByOwner(engine.engine.config.learned_memory) for name in names}
    parts: dict[str, list[Timing]] = {name: [] for name in names}

    def take(name: str, prompts: Sequence[list[int]], first: int = 0) -> Timing:
        drafting.learned = taught[name]
        sources = DraftSources(datastore=store) if name.startswith("datastore") else None
        return timed(engine, prompts, replace(params, seed=params.seed + first), name, sources)

    for name in names:
        take(name, [warm])
    for first in range(0, len(asked), batch):
        for name in order.sample(names, len(names)):
            parts[name].append(take(name, asked[first : first + batch], first))
    drafting.learned = shared
    return {name: Timing.joined(own) for name, own in parts.items()}


def _ratio(timings: Sequence[Timing], others: Sequence[Timing]) -> float:
    """The median of the ratios of two drafters' rates in the rounds that both took part in, which are the first."""
    return ratio([one.rate for one in timings], [one.rate for one in others])


def _compared(name: str, timings: Sequence[Timing], plain: Sequence[Timing]) -> Row:
    middle = sorted(timings, key=lambda timing: timing.rate)[len(timings) // 2]
    drafting = middle.drafting
    figures = {
        "tokens_per_s": middle.rate,
        "speedup": _ratio(timings, plain),
        "start_s": middle.start_s,
        "speedup_with_start": ratio(
            [one.tokens / (one.decode_s + one.start_s) for one in timings], [one.rate for one in plain]
        ),
        **drafting,
    }
    if drafting:
        bookkeeping = drafting["verifying_seconds"]
        if not name.startswith(_WITH_FORWARDS):
            bookkeeping += drafting["drafting_seconds"]
        figures["bookkeeping_share"] = bookkeeping / middle.decode_s
    return figures


def beside(
    engine: AsyncEngine, asked: Sequence[list[int]], max_tokens: int, stops: bool, rounds: int = 3
) -> dict[str, Any]:
    """Greedy tokens per second after a prompt's first forward: transformers' own decoding and prompt lookup, and ours,
    in turn over the same prompts; medians of `rounds`."""
    model = beside_transformers.load(engine.engine.loaded.name)
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=not stops)

    def theirs(**extra: Any) -> tuple[list[list[int]], float]:
        return beside_transformers.answer(model, asked, max_tokens, stops, **extra)

    def ours(name: str) -> tuple[list[list[int]], float]:
        drafting = engine.engine.drafting
        drafting.learned = LearnedByOwner(engine.engine.config.learned_memory)
        found = Timing.joined([timed(engine, [prompt], params, name) for prompt in asked])
        return found.ids, found.rate

    ways: dict[str, Callable[[], tuple[list[list[int]], float]]] = {
        "transformers": theirs,
        "transformers_prompt_lookup": partial(theirs, prompt_lookup_num_tokens=10),
        "prompt_lookup": partial(ours, "prompt_lookup"),
        "auto": partial(ours, "auto"),
    }
    found = in_turn(ways, rounds)
    rates = {name: median(rate for _, rate in answers) for name, answers in found.items()}
    ids = {name: answers[-1][0] for name, answers in found.items()}
    return {
        "tokens_per_s": rates,
        "same_ids_as_own_decoding": ids["transformers"] == ids["transformers_prompt_lookup"],
        "same_ids_as_ours": ids["transformers"] == ids["auto"] == ids["prompt_lookup"],
        "prompt_lookup_over_peer": rates["prompt_lookup"] / rates["transformers_prompt_lookup"],
        "auto_over_peer": rates["auto"] / rates["transformers_prompt_lookup"],
    }


def _datastore(engine: AsyncEngine, text: Path) -> TokenStore:
    """The held-out documents of the folder, from which `quoting` takes its contexts."""
    encode = engine.engine.tokenizer.encode
    documents = [encode(" ".join(one.sentences), add_special_tokens=False) for one in read_folder(text)]
    return TokenStore.build(documents, engine.engine.loaded.tokenizer_fingerprint or "")


def chart(figures: dict[str, Any], path: Path) -> None:
    """Draw speed-up, accepted length and acceptance rate of every drafter, a bar a context, for the batch-1 cells of
    each workload and temperature."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [
        cell
        for cell in figures["cells"]
        if cell["batch"] == 1 and cell["dtype"] != "float64" and cell["drafter"] != PLAIN
    ]
    groups = list(dict.fromkeys((cell["workload"], cell["temperature"]) for cell in cells))
    contexts = sorted({cell["context"] for cell in cells})
    names = list(dict.fromkeys(cell["drafter"] for cell in cells))
    shown = (
        ("speedup", "speed-up over plain"),
        ("accepted_length", "accepted length"),
        ("acceptance_rate", "acceptance rate"),
    )
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


def file_name(options: Options, figures: Figures) -> str:
    """Of the file that `measure` writes to."""
    return (_only(options) if options.only else options).name


command = bench(Options, measure, file_name)
