"""A folder of known contents: every sentence and value is stored as it is printed, what is unread is noted."""

from __future__ import annotations

import textwrap
from pathlib import Path

import make_files
import pytest

from retrieval.library import Library

NAMES = ["Anna", "Bela", "Cora", "Dora", "Edda", "Fina", "Gerd", "Hana", "Ilse", "Jana"]
SENTENCES = [
    f"{name} kept gate {number} of the northern mill for {number + 2} long-serving years, and nobody else did."
    for number, name in enumerate(NAMES, 11)
]
ROWS = [[str(1890 + number), f"{number * 7 + 3} litres", f"{number}.5{number}"] for number in range(10)]


def two_columns(sentences: list[str]) -> bytes:
    """Set in two columns and written row by row, as some programs do."""
    lines = textwrap.wrap(" ".join(sentences), 38, break_on_hyphens=False)
    half = (len(lines) + 1) // 2
    pieces = []
    for number in range(half):
        for x, line in ((60, lines[number]), (330, (lines + [""])[half + number])):
            if line:
                pieces.append((x, 700 - 14 * number, 11, line))
    return make_files.placed_pdf([pieces])


def table() -> bytes:
    rows = [["Year", "Oil", "Price"], *ROWS]
    cells = [(72 + 150 * x, 660 - 15 * y, 11, cell) for y, row in enumerate(rows) for x, cell in enumerate(row)]
    return make_files.placed_pdf([[(72, 680, 11, "Table 1: Oil that the lamp burned"), *cells]])


def page() -> bytes:
    menu = "".join(f"<li><a href='/{name}'>Menu of {name}</a>" for name in NAMES)
    rows = "".join(f"<tr>{''.join(f'<td>{cell}' for cell in row)}" for row in ROWS)
    head = "<tr><th>Year<th>Oil<th>Price"
    content = "".join(f"<p>{sentence}</p>" for sentence in SENTENCES)
    return f"<nav><ul>{menu}</ul></nav><main><h1>Gates</h1>{content}<table>{head}{rows}</table></main>".encode()


@pytest.fixture
def folder(tmp_path: Path, shared: Path) -> Path:
    folder = tmp_path / "mixed"
    folder.mkdir()
    files = {
        "columns.pdf": two_columns(SENTENCES),
        "table.pdf": table(),
        "page.html": page(),
        "notes.md": "\n\n".join(["<center>", "# Gates", *SENTENCES, "</center>"]).encode(),
        "scan.pdf": (shared / "cases" / "mixed_scan.pdf").read_bytes(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_every_sentence_and_row_is_read_and_every_unread_part_noted(library: Library, folder: Path) -> None:
    results = {Path(result.name).name: result for result in library.ingest([folder])}
    texts = {name: library.text(result.id or "") for name, result in results.items()}
    for name in ("columns.pdf", "page.html", "notes.md"):
        flowing = " ".join(texts[name].split())
        assert [sentence for sentence in SENTENCES if sentence not in flowing] == []
    for name in ("table.pdf", "page.html"):
        lines = texts[name].split("\n")
        assert [row for row in ROWS if "\t".join(row) not in lines] == []
    assert "Menu" not in texts["page.html"]
    assert "center" not in texts["notes.md"]
    assert {name: (result.status, bool(result.notes)) for name, result in results.items()} == {
        "columns.pdf": ("ready", False),
        "table.pdf": ("ready", False),
        "page.html": ("ready", True),
        "notes.md": ("ready", True),
        "scan.pdf": ("partial", True),
    }


def test_a_row_is_shown_with_the_names_of_its_columns(library: Library, folder: Path) -> None:
    library.ingest([folder / "table.pdf"])
    for hit in library.chunks(library.documents()[0].id):
        assert "Year\tOil\tPrice" in f"{hit.context}\n{hit.text}"
