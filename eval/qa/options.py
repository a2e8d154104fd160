"""The options of `folio eval qa`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from service.models import shown_name
from service.settings import EMBEDDED

CONTROL = "control"
DATA: Any = Option(help="Questions: a file of SQuAD's or XQuAD's format, or of our own.")

HALF: Any = Option(help="Only questions about the first, or second, half of the documents; all are searched.")

Half = Literal["first", "second"]
Mode = Literal["closed", "open"]
"""closed: the question's own document alone is in scope; open: all documents are, and are searched."""


@dataclass(frozen=True, kw_only=True)
class QaOptions:
    """Questions about documents, answered by the whole service: right, cited, honest, and how well search does."""

    data: Annotated[Path, DATA]
    model: Annotated[
        str, Option("--model", "-m", help="embedded, smollm2, a GGUF file, a folder, a hub id; or control.")
    ] = EMBEDDED
    mode: Annotated[
        Literal["closed", "open", "both"],
        Option(help="closed: the question's own document is given; open: all are searched."),
    ] = "both"
    limit: Annotated[int | None, Option(min=1, help="Questions to answer, drawn by the seed; all by default.")] = None
    seed: Annotated[int, Option(min=0, help="Of the draw, and of sampling.")] = 0
    drafter: Annotated[str | None, Option(help="What drafts; by default what the settings say.")] = None
    max_tokens: Annotated[int | None, Option(min=1, help="Longest answer, in tokens.")] = None
    clients: Annotated[int, Option(min=1, help="Questions under way at once.")] = 8
    language: Annotated[str | None, Option(help="Of the questions, where the file's name does not say it.")] = None
    half: Annotated[Half | None, HALF] = None
    retrieval: Annotated[bool, Option(help="Measure search over all questions, too.")] = True
    rerank: Annotated[bool, Option(help="Measure search in the ranker's order, too.")] = True
    answers: Annotated[bool, Option(help="Let the model answer; without, search alone is measured.")] = True
    output: Annotated[Path, Option(help="Folder of rows, figures and the report; runs there add up.")] = Path("qa")
    json: Annotated[Path | None, Option("--json", help="File for the figures of this run.")] = None
    resume: Annotated[bool, Option("--resume", help="Go on with the rows that an earlier run left.")] = False

    @property
    def modes(self) -> tuple[Mode, ...]:
        return ("closed", "open") if self.mode == "both" else (self.mode,)

    @property
    def label(self) -> str:
        """The model's name in files and tables."""
        return shown_name(self.model).replace("/", "-")
