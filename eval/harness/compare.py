"""Two engines over the same examples, paired by id.

Lossless pairs must give the same token ids; the first divergence of every differing example is shown. Other
pairs get, for each scorer, the difference of the means with a paired bootstrap interval, and McNemar's exact
test on right against wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.errors import EvalError
from eval.harness.store import load_summary, read_rows
from eval.scoring import SCORERS

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Divergence:
    """Where two token sequences part.

    Attributes:
        at: index of the first differing generated token. a, b: the ids from there on, a few of them.
    """

    file: str
    id: Any
    at: int
    a: list[int]
    b: list[int]
    same_prompt: bool


def compare(a: Path, b: Path, *, lossless: bool | None = None) -> dict[str, Any]:
    """Compare two engines' folders (DIR/ENGINE) over all tasks and lengths that both have.

    Args:
        lossless: whether the pair must be token-identical; None to tell from the engines' descriptions: same
            attention policy, same way of reading, drafters that keep the tokens of plain decoding.

    Raises:
        EvalError: a folder is not one of results, or they share no example.
    """
    shared = sorted(
        {path.name for path in a.glob("samples_*.jsonl")} & {path.name for path in b.glob("samples_*.jsonl")}
    )
    if not shared:
        raise EvalError(f"{a} and {b} share no task", hint="Give two engines' folders of `folio eval run`.")
    must_agree = _lossless(a, b) if lossless is None else lossless
    files = {name.removeprefix("samples_").removesuffix(".jsonl"): _pairs(a / name, b / name) for name in shared}
    pairs = [(file, *pair) for file, found in files.items() for pair in found]
    if not pairs:
        raise EvalError(f"{a} and {b} share no example ids")
    divergences = [d for file, one, other in pairs if (d := divergence(file, one, other)) is not None]
    return {
        "a": a.name,
        "b": b.name,
        "pairs": len(pairs),
        "lossless": must_agree,
        "identical": len(pairs) - len(divergences),
        "divergences": [vars(d) for d in divergences],
        "tasks": {file: _scores(found) for file, found in files.items() if found},
        "all": _scores([pair for found in files.values() for pair in found]),
    }


def divergence(file: str, one: dict[str, Any], other: dict[str, Any]) -> Divergence | None:
    """The first difference of a pair's generated ids; None where they are the same.

    Engines that do not tell ids (endpoints) are compared by their texts' characters.
    """
    a, b = _tokens(one), _tokens(other)
    if a == b:
        return None
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    same_prompt = one["prompt_sha256"] == other["prompt_sha256"]
    return Divergence(file, one["id"], at, a[at : at + 8], b[at : at + 8], same_prompt)


def bootstrap(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> dict[str, float]:
    """Mean of b − a, and its percentile interval over resampled pairs (Koehn 2004), in the units of the scores."""
    delta = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    random = np.random.default_rng(seed)
    means = [delta[random.integers(0, len(delta), size=len(delta))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"delta": float(delta.mean()), "low": float(low), "high": float(high)}


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> dict[str, float | int]:
    """Exact two-sided McNemar test: pairs that only a, or only b, has right, and the binomial p value."""
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    return {"only_a": only_a, "only_b": only_b, "p": min(1.0, 2 * tail)}


def _scores(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    figures = {}
    for scorer in SCORERS:
        a = [100 * one["scores"][scorer] for one, _ in pairs]
        b = [100 * other["scores"][scorer] for _, other in pairs]
        figures[scorer] = {
            "n": len(pairs),
            "a": math.fsum(a) / len(a),
            "b": math.fsum(b) / len(b),
            **bootstrap(a, b),
            "mcnemar": mcnemar([value == 100 for value in a], [value == 100 for value in b]),
        }
    return figures


def _pairs(a: Path, b: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    others = {str(row["id"]): row for row in read_rows(b)}
    return [(row, others[str(row["id"])]) for row in read_rows(a) if str(row["id"]) in others]


def _tokens(sample: dict[str, Any]) -> list[int]:
    return sample["token_ids"] or [ord(character) for character in sample["text"]]


def _lossless(a: Path, b: Path) -> bool:
    one, other = _description(a), _description(b)
    if one is None or other is None:
        return False
    keys = ("model", "attention", "retrieval", "dtype", "device")
    same = all(one.get(key) == other.get(key) for key in keys) and one["kind"] == other["kind"] == "folio"
    return same and one["same_tokens"] and other["same_tokens"]


def _description(folder: Path) -> dict[str, Any] | None:
    """The engine's description in the results.json above its folder, if there is one."""
    if not (folder.parent / "results.json").exists():
        return None
    engines = load_summary(folder.parent)["engines"].values()
    return next((engine for engine in engines if engine.get("folder") == folder.name), None)
