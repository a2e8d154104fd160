"""Perplexity of a book at long context under attention policies, PG-19's way: what a policy costs where nothing is
asked.

Windows are cut from the text one behind the other, as many as are asked for or fit. Each is read whole as a prompt;
what counts is the mean negative log-probability of its last ``scored`` tokens, which have the longest context, given
all before them. Every policy reads the same windows, so that ``over_dense`` is the mean of paired differences, with its
own error.

The same differences calibrate `skip`: with ``--skip`` its ``lambda`` is doubled from 1/64 on until perplexity rises by
more than ``--most`` (a share), and the largest that is not too much is told, as a policy to be given to a service.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

from typer import Option

from eval.bench.base import BenchOptions, Figures, Lengths, Model, Policies, Row, bench
from eval.bench.runner import build
from eval.errors import EvalError
from eval.losses import Losses, cut, read, rise
from service.engine.async_engine import AsyncEngine
from service.engine.loading.checkpoint import load_model

DENSE = "dense"
FIRST, LAST = 1 / 64, 1024.0  # lambdas that are tried


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Perplexity of a book under attention policies; with --skip the largest lambda that costs next to nothing."""

    model: Model = "smollm2"
    lengths: Lengths = (4096,)
    policies: Policies = ("skip",)
    text: Annotated[Path, Option(help="The book.")] = Path("../shared/corpus/news_from_nowhere.txt")
    windows: Annotated[int, Option(min=2, help="Windows of each length.")] = 4
    scored: Annotated[int, Option(min=16, help="Last tokens of each that count.")] = 1024
    skip: Annotated[bool, Option("--skip", help="Find the largest lambda of skip whose loss is at most MOST.")] = False
    most: Annotated[float, Option(min=0.0, help="Share by which perplexity may rise.")] = 0.002
    dtype: Annotated[str, Option(help="Precision of the model.")] = "auto"


def run(options: Options) -> Figures:
    """A row a length and policy, dense first.

    Raises:
        EvalError: the text is too short for two windows, or a length for what is scored.
    """
    loaded = load_model(options.model, options.dtype)
    if loaded.tokenizer is None:
        raise EvalError(f"The model {options.model!r} has no tokenizer, so there is no text to measure on.")
    ids = list(loaded.tokenizer.encode(options.text.read_text(encoding="utf-8"), add_special_tokens=False))
    rows: list[Row] = []
    calibrated: list[Row] = []
    with build(loaded, 1.2 * max(options.lengths) + 2048) as engine:
        for length in options.lengths:
            windows = cut(ids, min(length, loaded.max_len), options.windows, options.scored)
            own = {DENSE: read(engine, windows, options.scored, DENSE)}
            for policy in options.policies:
                own[policy] = read(engine, windows, options.scored, policy)
            if options.skip:
                found = largest(engine, windows, options, own[DENSE])
                own |= found
                kept = [name for name in found if rise(found[name], own[DENSE]) <= options.most]
                calibrated.append({"length": len(windows[0]), "policy": kept[-1] if kept else DENSE})
            rows += [row(len(windows[0]), name, losses, own[DENSE]) for name, losses in own.items()]
    return {
        **options.told("model", "scored"),
        "text": options.text.name,
        "rows": rows,
        **({"most": options.most, "calibrated": calibrated} if options.skip else {}),
    }


def largest(
    engine: AsyncEngine, windows: Sequence[Sequence[int]], options: Options, dense: Losses
) -> dict[str, Losses]:
    """The losses of `skip` by its lambda, doubled until one loses too much."""
    found: dict[str, Losses] = {}
    share = FIRST
    while share <= LAST:
        policy = f"skip:lambda={share:g}"
        found[policy] = read(engine, windows, options.scored, policy)
        if rise(found[policy], dense) > options.most:
            break
        share *= 2
    return found


def row(length: int, policy: str, losses: Losses, dense: Losses) -> dict[str, Any]:
    """What the table says of a policy."""
    differences = [one - other for one, other in zip(losses.each, dense.each, strict=True)]
    return {
        "length": length,
        "policy": policy,
        "windows": len(losses.each),
        "perplexity": math.exp(fmean(losses.each)),
        "loss": fmean(losses.each),
        "over_dense": fmean(differences),
        "over_dense_stderr": stdev(differences) / math.sqrt(len(differences)),
        "density": losses.density,
    }


command = bench(Options, run, "perplexity")
