"""Decoding speed behind a long context: the engine beside transformers' `generate` (sdpa), in turn, on a random model;
and of the embedded reader behind a text, dense and with pages selected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eval.bench import _reader_decode
from eval.bench._beside_transformers import common_prefix, compare, describe
from eval.figures import report_result

TARGET_SPEEDUP = 2.0
POLICIES = ("quest:interval=4,dense_layers=0", "quest:interval=4,dense_layers=0,budget=2048")


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
    text: Annotated[
        Path | None, typer.Option(help="text for the reader; without it only the random model runs")
    ] = None,
    reader_contexts: Annotated[str, typer.Option(help="the reader's prompt lengths")] = "4096,16384,65536",
    policies: Annotated[str, typer.Option(help="decode policies beside dense, separated by ;")] = ";".join(POLICIES),
    output: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures")] = False,
) -> None:
    """Decode behind a long context, beside transformers and with pages selected."""
    figures = run(contexts or [16384], new_tokens, repeats, threads)
    if text is not None:
        figures["reader"] = _reader_decode.run(
            text.read_text(encoding="utf-8"),
            [int(n) for n in reader_contexts.split(",")],
            [p for p in policies.split(";") if p],
            new_tokens,
            threads,
        )
    report_result("bench_decode", figures, as_json=as_json, output=output)
