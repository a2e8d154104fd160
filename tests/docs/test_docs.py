"""The documentation names only what is there: settings, commands and options, metrics, files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from service.api import metrics
from service.cli.main import app
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OF_EVAL = ("bench", "eval", "calibrate")
"""Commands that `eval` registers, which has tests of its own."""
ASSIGNMENT = re.compile(r"^[A-Z][A-Z0-9_]*=\S*$")


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every `folio …` line in a code block, and of every `folio …` in running text."""
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.S | re.M):
            for line in block.replace("\\\n", " ").splitlines():
                yield from _of_folio(page.name, line)
        for inline in re.findall(r"`(folio [^`\n]*)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)):
            yield from _of_folio(page.name, inline)


def _of_folio(page: str, line: str) -> Iterator[tuple[str, list[str]]]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose of another kind of block
        return
    while words and ASSIGNMENT.match(words[0]):
        words.pop(0)
    if words and words[0] == "folio":
        yield page, words[1:]


@pytest.fixture(scope="module")
def folio() -> Any:
    """The command of all commands."""
    return typer.main.get_command(app)


@pytest.mark.parametrize(("page", "words"), [pytest.param(*one, id=" ".join(one[1])) for one in commands()])
def test_commands_and_options_exist(page: str, words: list[str], folio: Any) -> None:
    command = folio
    for word in words:
        options = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
        if word in ("…", "|", ">"):
            break
        if word.startswith("-"):
            assert word.partition("=")[0] in options | {"--help"}, f"{page}: {word} is no option of {' '.join(words)}"
        elif hasattr(command, "commands"):
            if word in OF_EVAL:
                break
            assert word in command.commands, f"{page}: there is no 'folio {' '.join(words)}'"
            command = command.commands[word]


def test_the_settings_table_is_complete() -> None:
    section = (ROOT / "docs/operations.md").read_text().partition("## Settings")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `(FOLIO_[A-Z_]+)` \| (.*?) \|", section, re.M))
    assert told == {f"FOLIO_{name.upper()}": shown(field.default) for name, field in Settings.model_fields.items()}


def shown(default: object) -> str:
    """A default as the table writes it."""
    if default in (None, ""):
        return "–"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_are_settings(page: Path) -> None:
    others = {"FOLIO_CONFIG", "FOLIO_CPU_FEATURES", "FOLIO_SCREENSHOTS"}
    known = {f"FOLIO_{name.upper()}" for name in Settings.model_fields} | others
    assert set(re.findall(r"FOLIO_[A-Z_]+[A-Z]", page.read_text())) <= known


def test_metrics_exist() -> None:
    named = set(re.findall(r"folio:([a-z_]+)", (ROOT / "docs/operations.md").read_text()))
    source = Path(metrics.__file__).read_text()
    for name in named:
        base = re.sub(r"_(total|bucket)$", "", name)
        known = {*metrics.GAUGES, *metrics.COUNTERS, *metrics.BY_POLICY}
        assert base in known or f'"folio:{base}"' in source, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]:
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        assert not path or (page.parent / path).exists(), target
        if anchor:
            assert anchor in headings((page.parent / path) if path else page), target


@pytest.mark.parametrize("name", ["docs/architecture.md", "SECURITY.md", "README.md", "CONTRIBUTING.md"])
def test_files_named_exist(name: str) -> None:
    folders = "sparse_attn|drafters|retrieval|service|eval|tests|docs"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", (ROOT / name).read_text()):
        assert (ROOT / path).exists(), path


def headings(page: Path) -> set[str]:
    """The anchors of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs/images").glob("*.png"))
    assert pictures
    assert all(picture.stat().st_size < 200_000 for picture in pictures)
