"""The table that the policy `auto` reads, for one model: which policy is faster from which length on, at no loss.

Windows of a text are read under each candidate: once for the log-probabilities of their last tokens, once for the time
to the first token. The fastest whose perplexity rises by no more than a bound is a length's policy, if it beats
dense attention there. Decode stays dense: what a policy loses there shows in no text that is read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from eval.errors import EvalError
from eval.figures import write_atomically
from eval.losses import cut, read, rise
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
WINDOWS = 4
SCORED = 1024

Row = dict[str, Any]


def measure(
    engine: AsyncEngine,
    ids: Sequence[int],
    lengths: Sequence[int],
    policies: Sequence[str],
    keep: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """A row a length and policy, dense first: seconds to the first token and the share by which perplexity rises.

    ``keep`` is given the rows so far after each.

    Raises:
        EvalError: the text is too short for two windows of the longest.
    """
    rows: list[Row] = []
    for length in sorted(lengths):
        scored = min(SCORED, length // 2)
        windows = cut(ids, length, WINDOWS, scored)
        dense = read(engine, windows, scored, DENSE)
        for policy in (DENSE, *policies):
            losses = read(engine, windows, scored, policy)
            rows.append(
                {
                    "length": length,
                    "policy": policy,
                    "first_token_s": median(_first_token(engine, window, policy) for window in windows),
                    "rise": rise(losses, dense),
                    "density": losses.density,
                }
            )
            keep(rows)
    return rows


def table_of(rows: Sequence[Row], most: float) -> list[Row]:
    """What `auto` reads: at each length the fastest policy whose perplexity rises by at most the share ``most``."""
    table: list[Row] = [{"min_length": 0, "policy": DENSE}]
    for length in sorted({row["length"] for row in rows}):
        own = [row for row in rows if row["length"] == length]
        dense = next(row for row in own if row["policy"] == DENSE)
        paying = [row for row in own if row["rise"] <= most and row["first_token_s"] <= FASTER * dense["first_token_s"]]
        best = min(paying, key=lambda row: float(row["first_token_s"]), default=dense)
        policy = DENSE if best is dense else f"{best['policy']}+{DENSE}"
        if policy != table[-1]["policy"]:
            table.append({"min_length": length, "policy": policy})
    return table


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
