"""The options of `folio eval prompts`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from eval.qa.options import DATA, HALF, Half
from service.models import shown_name


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Ways to ask a model about documents compared: the same questions over the same retrieved passages."""

    data: Annotated[Path, DATA]
    model: Annotated[str, Option("--model", "-m", help="A model with a chat template.")] = "smollm2"
    style: Annotated[tuple[str, ...], Option(help="Way to ask; may be repeated; default: all.")] = ()
    half: Annotated[Half | None, HALF] = None
    limit: Annotated[int | None, Option(min=1, help="Questions to ask, drawn by the seed; all by default.")] = None
    without: Annotated[
        int, Option(min=0, help="Of these, so many whose document is left out, and which are not answered then.")
    ] = 0
    seed: Annotated[int, Option(min=0, help="Of the draw.")] = 0
    rerank: Annotated[bool, Option("--rerank", help="Take the passages that the ranker puts first.")] = False
    max_tokens: Annotated[int, Option(min=1, help="Longest answer.")] = 48
    home: Annotated[Path | None, Option(help="Of library and earlier answers; default: Folio's cache.")] = None
    output: Annotated[Path | None, Option(help="Rows are added to it; default: eval/results/prompts.json.")] = None

    @property
    def label(self) -> str:
        """The model's name in rows."""
        return shown_name(self.model)
