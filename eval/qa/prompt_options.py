"""The flags of ``folio eval prompts``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True)
class PromptOptions:
    """Compare ways to ask a model about documents, on questions whose answers are known."""

    data: Annotated[Path, typer.Option(help="Questions and paragraphs in SQuAD's form, as XQuAD's files.")]
    model: Annotated[str, typer.Option("--model", "-m", help="A model with a chat template.")] = "smollm2"
    style: Annotated[tuple[str, ...], typer.Option(help="Style to measure; may be repeated; default: all.")] = ()
    report: Annotated[bool, typer.Option("--report", help="The questions that nothing was chosen on.")] = False
    limit: Annotated[int, typer.Option(min=1, help="Questions with an answer.")] = 24
    unanswerable: Annotated[int, typer.Option(min=0, help="Questions without.")] = 8
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 48
    beside: Annotated[tuple[Path, ...], typer.Option(help="Other files for the library; may be repeated.")] = ()
    home: Annotated[
        Path | None, typer.Option(help="Of the library, and of answers that are there already; default: a cache.")
    ] = None
    output: Annotated[Path | None, typer.Option(help="Default: eval/results/prompts.json; rows are added.")] = None
