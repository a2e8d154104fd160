"""Decoding speed behind a long context: the engine beside transformers' `generate` (sdpa), in turn, on one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eval.bench._beside_transformers import common_prefix, compare, describe
from eval.results import report_result

TARGET_SPEEDUP = 2.0


def run(contexts: list[int], new_tokens: int = 32, repeats: int = 2, threads: int = 2) -> dict[str, Any]:
    """Tokens per second at batch 1, greedy, float32, no drafter, for each length of context.

    Returns, a context: both systems' times, `speedup` = ours ÷ theirs in tokens/s (medians over all tokens of all
    repeats), and how many greedy ids agree.
    """
    rows = []
    for context in contexts:
        theirs, ours = compare(context, new_tokens, repeats, threads)
        rows.append(
            {
                "context": context,
                "transformers": describe(theirs),
                "folio": describe(ours),
                "speedup": ours.tokens_per_s / theirs.tokens_per_s,
                "agreeing_ids": common_prefix(ours.tokens, theirs.tokens),
            }
        )
    return {
        "model": "random Llama, 27 M parameters, 8 layers, 8/4 heads of 64, float32",
        "threads": threads,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "target_speedup": TARGET_SPEEDUP,
        "rows": rows,
    }


def command(
    contexts: Annotated[list[int] | None, typer.Option("--context", help="prompt length; may be repeated")] = None,
    new_tokens: Annotated[int, typer.Option(help="tokens to decode", min=2)] = 32,
    repeats: Annotated[int, typer.Option(help="runs of each system", min=1)] = 2,
    threads: Annotated[int, typer.Option(help="CPU threads", min=1)] = 2,
    output: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures")] = False,
) -> None:
    """Decode behind a long context, beside transformers."""
    figures = run(contexts or [16384], new_tokens, repeats, threads)
    report_result("bench_decode", figures, as_json=as_json, output=output)
