"""The table that the policy `auto` reads, for one model: which policy is faster from which length on, at no loss.

Windows of a text with numbers planted in it (`eval.planted`) are read under each candidate: once for the
log-probabilities of their last tokens, once for the time to the first token. The fastest whose perplexity rises by no
more than a bound, and which recalls the numbers as dense attention does, is a length's policy, if it beats dense
attention there. Decode stays dense: what a policy loses there shows in no text that is read.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from eval.errors import EvalError
from eval.figures import write_atomically
from eval.losses import cut
from eval.planted import Planted, Reading, plant, read
from service.engine.async_engine import AsyncEngine
from service.engine.loading.checkpoint import LoadedModel
from service.engine.options import parse_policy
from service.engine.params import SamplingParams
from service.models import shown_name
from sparse_attn.plan.policies import as_data, shape_data
from sparse_attn.plan.policy import ModelShape

FASTER = 0.97
"""A candidate must take at most this share of dense time to be worth its error."""
DENSE = "dense"
SCORED = 1024
HOPELESS = 5.0
"""Times the bound: who loses so much in the first window is not given the others. A bound of 0 counts as one of
`LEAST` here."""
LEAST = 0.001
FORGETFUL = 0.25
"""Share of the numbers of the first window: who recalls so many fewer than dense attention is not given the others."""

Row = dict[str, Any]


def measure(
    engine: AsyncEngine,
    encode: Callable[[str], Sequence[int]],
    ids: Sequence[int],
    lengths: Sequence[int],
    policies: Sequence[str],
    *,
    most: float,
    count: int,
    known: Sequence[Row] = (),
    keep: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """A row a length and policy, dense first: seconds to the first token, the share by which perplexity rises, and the
    share of planted numbers that are recalled.

    Args:
        encode: of the model's tokenizer; ``ids`` are what it makes of the text.
        most: the share by which perplexity may rise; a policy that loses many times that in one window, or a quarter of
            the numbers, is read in that alone, and not tried at greater lengths.
        count: windows of each length, or as many as the text has.
        known: rows of an earlier run, which come first and are not measured again.
        keep: is given the rows so far after each.

    Raises:
        EvalError: the text is too short for two windows of the longest.
    """
    rows = [*known]
    tried = [DENSE, *policies]
    for length in sorted(lengths):
        scored = min(SCORED, length // 2)
        texts = cut(ids, length, count, scored)
        windows = [plant(encode, text, scored, number) for number, text in enumerate(texts)]
        dense: list[Reading] = []
        for policy in tuple(tried):
            row = next((row for row in known if (row["length"], row["policy"]) == (length, policy)), None)
            if row is None:
                dense = dense or [read(engine, window, DENSE) for window in windows]
                row = {"length": length, "policy": policy, **_tried(engine, windows, policy, dense, most)}
                rows.append(row)
                keep(rows)
            if policy != DENSE and row["windows"] < len(windows):
                tried.remove(policy)
    return rows


def _tried(engine: AsyncEngine, windows: Sequence[Planted], policy: str, dense: Sequence[Reading], most: float) -> Row:
    """The figures of a policy beside what dense attention made of the windows."""
    own = list(dense) if policy == DENSE else [read(engine, windows[0], policy)]
    lost = dense[0].recall - own[0].recall
    if own[0].rise_over(dense[0]) <= HOPELESS * max(most, LEAST) and lost <= FORGETFUL:
        own += [read(engine, window, policy) for window in windows[len(own) :]]
    found, reference = Reading.of(own), Reading.of(dense[: len(own)])
    return {
        "windows": len(own),
        "first_token_s": median(_first_token(engine, window.ids, policy) for window in windows[: len(own)]),
        "perplexity": math.exp(found.loss),
        "rise": found.rise_over(reference),
        "numbers": len(found.recalled),
        "recalled": found.recall,
        "recalled_by_dense": reference.recall,
        "density": found.density,
    }


def table_of(rows: Sequence[Row], most: float) -> list[Row]:
    """What `auto` reads: at each length the fastest policy whose perplexity rises by at most the share ``most``, and
    which recalls as many numbers as dense attention less one standard error."""
    table: list[Row] = [{"min_length": 0, "policy": DENSE}]
    for length in sorted({row["length"] for row in rows}):
        own = [row for row in rows if row["length"] == length]
        dense = next(row for row in own if row["policy"] == DENSE)
        bearable = [row for row in own if row["rise"] <= most and _recalls(row)]
        paying = [row for row in bearable if row["first_token_s"] <= FASTER * dense["first_token_s"]]
        best = min(paying, key=lambda row: float(row["first_token_s"]), default=dense)
        policy = DENSE if best is dense else f"{best['policy']}+{DENSE}"
        if policy != table[-1]["policy"]:
            table.append({"min_length": length, "policy": policy})
    return table


def _recalls(row: Row) -> bool:
    right = (row["recalled_by_dense"] * row["numbers"] + 1) / (row["numbers"] + 2)  # neither 0 nor 1
    return bool(row["recalled"] >= row["recalled_by_dense"] - math.sqrt(right * (1 - right) / row["numbers"]))


def write_table(path: Path, device: str, table: Sequence[Row], loaded: LoadedModel) -> None:
    """Put such rows into a file that `auto` reads, with the model that was measured; those of other devices stay.

    Raises:
        EvalError: the file is another model's.
    """
    shape = ModelShape.of_config(loaded.model.config.get_text_config())
    measured = {"name": shown_name(loaded.name), **shape_data(shape)}
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if known.setdefault("model", measured) != measured:
        raise EvalError(f"{path} is the table of {known['model'].get('name')}", hint="Give another file.")
    known[device] = [{**row, "policy": as_data(parse_policy(row["policy"]))} for row in table]
    write_atomically(path, json.dumps(known, indent=2) + "\n")


def _first_token(engine: AsyncEngine, window: Sequence[int], policy: str) -> float:
    params = SamplingParams(max_tokens=1, drafter="none", attention=policy, ignore_eos=True)
    began = time.perf_counter()
    [found] = engine.generate([window], params)
    if found.error is not None:
        raise EvalError(f"the engine failed under {policy}: {found.error}")
    return time.perf_counter() - began
