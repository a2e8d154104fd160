"""The files in which others publish what their heads do: MInference's JSON and DuoAttention's TSV.

MInference: a list over layers of ``{"head": [pattern, vertical, slash, score]}`` with the patterns
``vertical_and_slash``, ``block_sparse`` and ``stream_llm``. DuoAttention: a row a layer, a column a KV head, the
gate alpha of each (1: needs the full context), separated by tabs; its folder also has config.json with sink and
recent sizes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_attn.errors import PatternFileError
from sparse_attn.plan.patterns import AShape, BlockTopK, Dense, Pattern, VerticalSlash

# MInference's search writes (8, 1) for a block-sparse head, but its kernel takes 100 blocks whatever the file says.
MINFERENCE_PLACEHOLDER, MINFERENCE_BLOCKS = (8, 1), 100
HeadPatterns = tuple[tuple[Pattern, ...], ...]
HeadScores = tuple[tuple[float, ...], ...]


def read_minference(path: str | Path) -> HeadPatterns:
    """Patterns per layer and query head.

    Raises:
        PatternFileError: the file cannot be read, or an entry is not of the format; names layer and head.
    """
    layers = _read_json(path)
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, dict) for layer in layers):
        raise PatternFileError(f"{path}: not a MInference pattern file (a list over layers of objects by head)")
    table = []
    for n, layer in enumerate(layers):
        if sorted(layer) != sorted(str(h) for h in range(len(layer))):
            raise PatternFileError(f"{path}: layer {n} does not name heads 0 to {len(layer) - 1}, each once")
        table.append(tuple(_pattern(layer[str(h)], f"{path}: layer {n}, head {h}") for h in range(len(layer))))
    if len({len(layer) for layer in table}) > 1:
        raise PatternFileError(f"{path}: layers differ in their number of heads")
    return tuple(table)


def write_minference(
    path: str | Path, patterns: Sequence[Sequence[Pattern]], scores: Sequence[Sequence[float]] | None = None
) -> None:
    """Write patterns per layer and query head, with each choice's score (share of attention kept; 1 if unknown).

    Raises:
        PatternFileError: a pattern that the format has no name for.
    """
    layers = []
    for n, layer in enumerate(patterns):
        entry = {}
        for h, pattern in enumerate(layer):
            score = scores[n][h] if scores is not None else 1.0
            entry[str(h)] = [*_entry(pattern, n, h), round(float(score), 6)]
        layers.append(entry)
    Path(path).write_text(json.dumps(layers) + "\n", encoding="utf-8")


def read_duo(path: str | Path) -> HeadScores:
    """DuoAttention's alpha per layer and KV head, clipped to 0 … 1; ``path`` is the TSV or the folder that holds it.

    Raises:
        PatternFileError: the file cannot be read or is no table of numbers.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "full_attention_heads.tsv"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PatternFileError(f"{path}: cannot be read: {error}") from error
    try:
        table = tuple(tuple(min(max(float(x), 0.0), 1.0) for x in line.split("\t")) for line in lines if line.strip())
    except ValueError as error:
        raise PatternFileError(f"{path}: not a DuoAttention table (tab-separated numbers): {error}") from error
    if not table or len({len(row) for row in table}) > 1:
        raise PatternFileError(f"{path}: not a DuoAttention table: rows are missing or differ in length")
    return table


def write_duo(path: str | Path, scores: Sequence[Sequence[float]]) -> None:
    """Write alpha per layer and KV head."""
    text = "".join("\t".join(f"{x:.6f}" for x in row) + "\n" for row in scores)
    Path(path).write_text(text, encoding="utf-8")


def streaming_heads(scores: Sequence[Sequence[float]], share: float) -> tuple[tuple[int, ...], ...]:
    """The ``share`` of all KV heads with the lowest alpha, per layer, ties broken by layer and head.

    DuoAttention takes the quantile over the whole model, not per layer.
    """
    ranked = sorted((alpha, n, h) for n, row in enumerate(scores) for h, alpha in enumerate(row))
    chosen = {(n, h) for _, n, h in ranked[: round(share * len(ranked))]}
    return tuple(tuple(h for h in range(len(row)) if (n, h) in chosen) for n, row in enumerate(scores))


def _pattern(entry: Any, where: str) -> Pattern:
    try:
        kind, first, second = entry[0], int(entry[1]), int(entry[2])
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise PatternFileError(f"{where}: {entry!r} is not [pattern, number, number, score]") from error
    if first < 0 or second < 0:
        raise PatternFileError(f"{where}: {entry!r} has a negative size")
    match kind:
        case "vertical_and_slash":
            return VerticalSlash(first, second)
        case "stream_llm":
            return AShape(first, second)
        case "block_sparse":
            return BlockTopK(MINFERENCE_BLOCKS if (first, second) == MINFERENCE_PLACEHOLDER else first)
        case "dense":
            return Dense()
        case _:
            raise PatternFileError(f"{where}: unknown pattern {kind!r}")


def _entry(pattern: Pattern, layer: int, head: int) -> tuple[str, int, int]:
    match pattern:
        case VerticalSlash(vertical, slash):
            return "vertical_and_slash", vertical, slash
        case AShape(sink, local):
            return "stream_llm", sink, local
        case BlockTopK(blocks):
            return "block_sparse", blocks, 0
        case Dense():
            return "dense", 0, 0
        case _:
            raise PatternFileError(f"layer {layer}, head {head}: MInference's format has no {pattern}")


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PatternFileError(f"{path}: cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise PatternFileError(f"{path}: not JSON: {error}") from error
