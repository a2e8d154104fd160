"""How `folio ask` writes an answer as it comes: plain, or each token in the colour of who supplied it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.text import Text

from service.cli.output import emit_text

if TYPE_CHECKING:
    from service.answering.answer import Answer

SUPPORT = {"verbatim": "green", "attributed": "cyan", "none": "yellow"}
COLOURS = ("green", "cyan", "magenta", "yellow", "blue", "red", "bright_green", "bright_cyan", "bright_magenta")


class AnswerWriter(Protocol):
    """Writes the data of an answer's `message` events to the terminal."""

    def write(self, data: Mapping[str, Any]) -> None: ...


class PlainText:
    """The text alone."""

    def write(self, data: Mapping[str, Any]) -> None:
        emit_text(data["text"])


class SourceColours:
    """Each token in the colour of its source, the model's own in none; `legend` says which is which.

    A source gets its colour when it first comes. Without colours in the terminal the legend still gives the shares.
    """

    def __init__(self, console: Console | None = None) -> None:
        from drafters.stats import TARGET  # brings torch, which `folio --help` must not wait for

        self._own = TARGET
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._tokens: Counter[str] = Counter()

    def write(self, data: Mapping[str, Any]) -> None:
        text = Text()
        for token in data.get("tokens") or [{"text": data["text"], "source": self._own}]:
            self._tokens[token["source"]] += 1
            text.append(token["text"], self._style(token["source"]))
        self._console.print(text, end="")

    def legend(self) -> None:
        """One line: every source in its colour, with its share of the answer's tokens."""
        total = sum(self._tokens.values())
        line = Text()
        for source, count in self._tokens.items():
            name = "the model itself" if source == self._own else source
            line.append(f"{name} {count / total:.0%}", self._style(source)).append("   ")
        self._console.print(Text("\n\n"), line, sep="")

    def claims(self, answer: Answer) -> None:
        """One line a claim: its support, what it says, and the numbers of its citations."""
        for number, claim in enumerate(answer.claims):
            cited = [f"[{n}]" for n, each in enumerate(answer.citations, start=1) if each["claim"] == number]
            line = Text(f"{claim['support']:<10} ", SUPPORT[claim["support"]])
            self._console.print(line.append(" ".join([*claim["text"].split(), *cited]), ""))

    def _style(self, source: str) -> str:
        if source == self._own:
            return ""
        drafters = [name for name in self._tokens if name != self._own]
        return COLOURS[drafters.index(source) % len(COLOURS)]
