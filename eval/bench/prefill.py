"""Time to the first token of a long prompt: the engine beside transformers (sdpa), in turn, on one random model, dense;
and of the embedded reader on text, under sparse policies and in other engines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eval.bench import _reader_prefill
from eval.bench._beside_transformers import compare, describe
from eval.figures import report_result

TARGET_SPEEDUP = 0.95
POLICIES = ("auto", "lserve", "trianglemix", "minference", "xattention:means=true")
READER_PEERS = ("transformers", "openvino", "openvino-xattention")


def run(contexts: list[int], repeats: int = 2, threads: int = 2) -> dict[str, Any]:
    """Seconds to the first token at batch 1, float32, dense attention, for each prompt length.

    Returns, a length: both systems' times and `speedup` = theirs ÷ ours (medians of the repeats).
    """
    rows = []
    for context in contexts:
        theirs, ours = compare(context, 2, repeats, threads)
        rows.append(
            {
                "context": context,
                "transformers": describe(theirs),
                "folio": describe(ours),
                "speedup": theirs.median_first_s / ours.median_first_s,
                "same_first_id": ours.tokens[0] == theirs.tokens[0],
            }
        )
    return {
        "model": "random Llama, 27 M parameters, 8 layers, 8/4 heads of 64, float32",
        "threads": threads,
        "repeats": repeats,
        "target_speedup": TARGET_SPEEDUP,
        "rows": rows,
    }


def command(
    contexts: Annotated[list[int] | None, typer.Option("--context", help="prompt length; may be repeated")] = None,
    repeats: Annotated[int, typer.Option(help="runs of each system", min=1)] = 2,
    threads: Annotated[int, typer.Option(help="CPU threads", min=1)] = 2,
    text: Annotated[
        Path | None, typer.Option(help="text for the reader; without it only the random model runs")
    ] = None,
    reader_contexts: Annotated[str, typer.Option(help="the reader's prompt lengths")] = "16384,32768,65536",
    policies: Annotated[str, typer.Option(help="policies beside dense, separated by semicolons")] = ";".join(POLICIES),
    peers: Annotated[str, typer.Option(help="other engines, separated by commas")] = ",".join(READER_PEERS),
    peers_up_to: Annotated[int, typer.Option(help="longest prompt of the other engines")] = 32768,
    output: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures")] = False,
) -> None:
    """Prefill long prompts, beside other engines and under sparse policies."""
    figures = run(contexts or [4096, 16384], repeats, threads)
    if text is not None:
        figures["reader"] = _reader_prefill.run(
            text.read_text(encoding="utf-8"),
            sorted(int(n) for n in reader_contexts.split(",")),
            [p for p in policies.split(";") if p],
            [p for p in peers.split(",") if p],
            peers_up_to,
            repeats,
            threads,
        )
    report_result("bench_prefill", figures, as_json=as_json, output=output)
