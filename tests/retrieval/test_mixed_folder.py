"""A folder of known contents: every sentence and value is stored as the file shows it, what is unread is noted."""

from __future__ import annotations

import datetime as dt
import re
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from io import BytesIO
from pathlib import Path
from typing import Any

import make_files
import pytest
from openpyxl import Workbook

from retrieval.embedding.encoding import Embedder
from retrieval.library import Library
from retrieval.parsing.limits import Limits
from retrieval.types import IngestResult

NAMES = ["Anna", "Bela", "Cora", "Dora", "Edda", "Fina", "Gerd", "Hana", "Ilse", "Jana"]
SENTENCES = [
    f"{name} kept gate {number} of the northern mill for {number + 2} long-serving years, and nobody else did."
    for number, name in enumerate(NAMES * 3, 11)
]
ROWS = [[str(1890 + number), f"{number * 7 + 3} litres", f"{number}.5{number}"] for number in range(10)]
CELLS: list[tuple[Any, str, str]] = [
    (1001, "General", "1001"),
    (123456789012345678, "0", "123456789012345678"),
    ("007", "@", "007"),
    ("NA", "@", "NA"),
    ("NULL", "@", "NULL"),
    ("None", "@", "None"),
    ("nan", "@", "nan"),
    (True, "General", "TRUE"),
    (False, "General", "FALSE"),
    (0.1, "General", "0.1"),
    (1234567.891, "#,##0.00", "1,234,567.89"),
    (0.125, "0.0%", "12.5%"),
    (1, "0%", "100%"),
    (-42, "0;(0)", "(42)"),
    (1e21, "General", "1E+21"),
    (12.5, '0.00" kg"', "12.50 kg"),
    (1250, '"€"#,##0', "€1,250"),
    (5, "000", "005"),
    (dt.date(2024, 3, 5), "yyyy-mm-dd", "2024-03-05"),
    (dt.date(2024, 3, 5), "dd/mm/yyyy", "05/03/2024"),
    (dt.date(2024, 12, 31), "d. mmmm yyyy", "31. December 2024"),
    (dt.datetime(2024, 3, 5, 14, 30), "yyyy-mm-dd hh:mm", "2024-03-05 14:30"),
    (dt.time(9, 5), "hh:mm", "09:05"),
    ("Hélène", "General", "Hélène"),
    ("a | b: c", "General", "a | b: c"),
    ("two\nlines", "General", "two lines"),
    ("=cmd", "@", "=cmd"),
    ("½ litre", "General", "½ litre"),
    ("桥", "General", "桥"),
    (3.14159, "0.00", "3.14"),
]
VALUES = [
    ("Name", "text", b"(Ann O'Neill)", "Ann O'Neill"),
    ("Account", "text", b"(0012)", "0012"),
    ("City", "text", b"<FEFF014100F30064017A>", "Łódź"),
    ("Sum", "text", b"(1,001.50)", "1,001.50"),
    ("Remark", "lines", b"(First line\\nsecond line)", "First line\nsecond line"),
    ("Zone", "choice", b"(EUR)", "EUR"),
    ("Month", "choice", b"(March)", "March"),
    ("Married", "box", b"Yes", "[x]"),
    ("Member", "box", b"Off", "[ ]"),
    ("Signed", "text", b"(5 March 2024)", "5 March 2024"),
]
LETTERS = {
    "fr": "Hélène, gardienne du phare, a reçu 5 pièces pour l'été. À Noël, elle mangea une crème brûlée chez sa mère.",
    "de": "Die Größe der Brücke über den Fluß wurde im Jahr 1890 geändert; die Wärter hörten täglich das Läuten.",
    "es": "¿Dónde está el niño? El año pasado compró un camión pequeño en España, según dijo su mamá.",
    "ru": "Смотритель моста сказал, что ворота закрыты. Башня построена в 1890 году жителями города.",
    "zh": "橋的守護人說大門已經關閉。這座塔建於一八九零年，非常高大，城裡的人都知道它。",
}
ENCODINGS = {
    **dict.fromkeys(("fr", "de", "es"), ("cp1252", "cp850")),
    "ru": ("cp1251", "koi8-r"),
    "zh": ("gb18030", "big5"),
}
WIDE = ("utf-8", "utf-8-sig", "utf-16", "utf-32")


def two_columns(sentences: list[str]) -> bytes:
    """Set in two columns and written row by row, as some programs do."""
    lines = textwrap.wrap(" ".join(sentences), 38, break_on_hyphens=False)
    pages = []
    for at in range(0, len(lines), 80):
        part = lines[at : at + 80]
        half = (len(part) + 1) // 2
        pieces = []
        for number in range(half):
            for x, line in ((60, part[number]), (330, (part + [""])[half + number])):
                if line:
                    pieces.append((x, 700 - 14 * number, 11, line))
        pages.append(pieces)
    return make_files.placed_pdf(pages)


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


def sheet() -> bytes:
    book = Workbook()
    book.active.title = "Sales"
    book.active.append([f"Kind {number}" for number in range(6)])
    for at in range(0, len(CELLS), 6):
        book.active.append([value for value, _, _ in CELLS[at : at + 6]])
        for column, (_, shown, _) in enumerate(CELLS[at : at + 6], 1):
            cell = book.active.cell(book.active.max_row, column)
            cell.number_format = shown
            cell.data_type = "s" if isinstance(cell.value, str) else cell.data_type
    book.create_sheet("Old").append(["gone"])
    book["Old"].sheet_state = "hidden"
    buffer = BytesIO()
    book.save(buffer)
    with zipfile.ZipFile(buffer) as written:
        parts = {name: written.read(name) for name in written.namelist()}
    first = "xl/worksheets/sheet1.xml"  # where openpyxl rounds to 16 digits
    parts[first] = parts[first].replace(b"1.234567890123457e+17", b"123456789012345678")
    return make_files.archive(parts)


def word() -> bytes:
    hidden = "<w:p><w:r><w:rPr><w:vanish/></w:rPr><w:t>secret</w:t></w:r></w:p>"
    body = "".join(map(make_files.paragraph, SENTENCES)) + hidden
    return make_files.docx(body, extra={"word/comments.xml": b"<x/>"})


def mail() -> bytes:
    message = EmailMessage()
    message["Subject"] = "Gates"
    message.set_content("\n\n".join(SENTENCES), cte="8bit")
    message.add_attachment(b"\x89PNG\r\n\x1a\n", maintype="image", subtype="png", filename="gate.png")
    return message.as_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    files = {
        "columns.pdf": two_columns(SENTENCES),
        "table.pdf": table(),
        "form.pdf": make_files.form_pdf([(label, kind, value) for label, kind, value, _ in VALUES]),
        "page.html": page(),
        "notes.md": "\n\n".join(["<center>", "# Gates", *SENTENCES, "</center>"]).encode(),
        "sales.xlsx": sheet(),
        "gates.docx": word(),
        "gates.eml": mail(),
        "gates.epub": make_files.epub([f"<html><body><p>{sentence}</p></body></html>" for sentence in SENTENCES]),
        "scan.pdf": (shared / "cases" / "mixed_scan.pdf").read_bytes(),
        **{
            f"{language}.{encoding}.txt": text.encode(encoding)
            for language, text in LETTERS.items()
            for encoding in (*WIDE, *ENCODINGS[language])
        },
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Iterator[Library]:
    """One for all: what is parsed does not depend on the database, and no test changes it.

    The pages of the scan hold no text; that they are looked at is for `test_ocr`.
    """
    home = tmp_path_factory.mktemp("home")
    with Library.open(home, embedder=embedder, limits=Limits(ocr_seconds=0)) as opened:
        yield opened


@pytest.fixture(scope="module")
def results(library: Library, folder: Path) -> dict[str, IngestResult]:
    found = {Path(result.name).name: result for result in library.ingest([folder])}
    assert len(found) == 40
    return found


@pytest.fixture(scope="module")
def read(library: Library, results: dict[str, IngestResult]) -> Callable[[str], str]:
    """The stored text of each file."""
    return lambda name: library.text(results[name].id or "")


def test_every_sentence_is_read_back(read: Callable[[str], str]) -> None:
    for name in ("columns.pdf", "page.html", "notes.md", "gates.docx", "gates.eml", "gates.epub"):
        flowing = " ".join(read(name).split())
        assert [sentence for sentence in SENTENCES if sentence not in flowing] == [], name
    for name in ("table.pdf", "page.html"):
        lines = read(name).split("\n")
        assert [row for row in ROWS if "\t".join(row) not in lines] == [], name
    assert "Menu" not in read("page.html")
    assert "center" not in read("notes.md")


def test_every_cell_is_read_back_at_its_address(library: Library, results: dict[str, IngestResult]) -> None:
    result = results["sales.xlsx"]
    text = library.text(result.id or "")
    for number, (_, _, shown) in enumerate(CELLS):
        address = f"{'ABCDEF'[number % 6]}{number // 6 + 2}"
        said = f"Kind {number % 6}: {shown}"
        spans = [found.span() for found in re.finditer(re.escape(said), text)]
        places = {library.place_of(result.id or "", *span) for span in spans}
        assert f"Sales, Kind {number % 6}, {address}" in places, said
    assert result.notes == ["sheet Old is hidden and was not read"]


def test_every_form_value_is_read_back_beside_its_label(read: Callable[[str], str]) -> None:
    text = read("form.pdf")
    assert text.split("\n") == [line for label, _, _, value in VALUES for line in f"{label} {value}".split("\n")]


def test_every_letter_is_read_back_in_every_encoding(read: Callable[[str], str]) -> None:
    wrong = [
        (language, encoding)
        for language, text in LETTERS.items()
        for encoding in (*WIDE, *ENCODINGS[language])
        if read(f"{language}.{encoding}.txt") != text
    ]
    assert wrong == []


def test_every_unread_part_is_noted(results: dict[str, IngestResult]) -> None:
    noted = {name: notes_of(result) for name, result in results.items() if not name.endswith(".txt")}
    assert noted == {
        "columns.pdf": ("ready", []),
        "table.pdf": ("ready", []),
        "form.pdf": ("ready", []),
        "page.html": ("ready", ["left out around the content"]),
        "notes.md": ("ready", ["2 HTML tags or comments in the Markdown were left out"]),
        "sales.xlsx": ("ready", ["sheet Old is hidden and was not read"]),
        "gates.docx": ("ready", ["comments were not read", "hidden text was not read"]),
        "gates.eml": ("ready", ["attachment gate.png was not read: it is an image"]),
        "gates.epub": ("ready", []),
        "scan.pdf": noted["scan.pdf"],  # as the extra ocr is installed or not
    }
    assert results["scan.pdf"].notes[0].startswith("pages 2 to 6 are pictures (a scan?)")
    for language in LETTERS:
        assert results[f"{language}.utf-8.txt"].notes == []
        for encoding in ENCODINGS[language]:
            (note,) = results[f"{language}.{encoding}.txt"].notes
            assert re.fullmatch(r"decoded as [\w-]+ with 0 doubtful bytes", note)


def notes_of(result: IngestResult) -> tuple[str, list[str]]:
    """(status, notes without what stands in brackets or after a colon of them)."""
    return result.status, [re.sub(r" \(.*|(?<=content).*", "", note) for note in result.notes]


def test_a_row_is_shown_with_the_names_of_its_columns(library: Library, results: dict[str, IngestResult]) -> None:
    for hit in library.chunks(results["table.pdf"].id or ""):
        assert "Year\tOil\tPrice" in f"{hit.context}\n{hit.text}"
