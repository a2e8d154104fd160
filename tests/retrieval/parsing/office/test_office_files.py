"""Office files, mail and tables: what they show is stored, with its place; what is hidden or unreadable is noted."""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
import zipfile
from email.message import EmailMessage
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import Workbook

from retrieval.errors import UnsupportedFile
from retrieval.parsing import Limits, parse
from retrieval.parsing.document import ParsedDocument
from retrieval.parsing.places import place_of
from tests.retrieval import make_files

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def saved(book: Workbook) -> bytes:
    buffer = BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def named(parsed: ParsedDocument) -> list[tuple[str, int]]:
    """Its headings, with their levels."""
    return [(parsed.text[start:end], level) for start, end, level in parsed.headings]


def said(parsed: ParsedDocument, words: str) -> str:
    """The place of the first occurrence of the words."""
    at = parsed.text.index(words)
    return place_of(parsed.places, parsed.pages, at, at + len(words))


def test_a_sheet_keeps_every_value_as_it_is_shown() -> None:
    book = Workbook()
    sheet = book.active
    sheet.title = "Sales"
    sheet.append(["Account", None, "Country", "Status", "Paid", "Due", "Share"])
    sheet.append([1001, None, "NA", "NULL", True, dt.date(2024, 3, 5), 0.125])
    sheet.append(["007", None, "None", "nan", False, None, 1])
    sheet["G2"].number_format = sheet["G3"].number_format = "0.0%"
    parsed = parse(saved(book), "a.xlsx")
    assert parsed.text.split("\n") == [
        "Sales | Account: 1001 | Country: NA | Status: NULL | Paid: TRUE | Due: 2024-03-05 | Share: 12.5%",
        "Sales | Account: 007 | Country: None | Status: nan | Paid: FALSE | Share: 100.0%",
    ]
    assert said(parsed, "12.5%") == "Sales, Share, G2"
    assert said(parsed, "007 | Country: None") == "Sales, A3 to C3"
    (table,) = parsed.tables
    assert [parsed.text[start:end] for start, end in table.rows] == parsed.text.split("\n")


def test_merged_cells_count_for_all_they_span() -> None:
    book = Workbook()
    sheet = book.active
    for row in (["Zone", "2023", None], [None, "Q1", "Q2"], ["EUR", 1, 2], [None, 3, 4]):
        sheet.append(row)
    sheet.merge_cells("B1:C1")
    sheet.merge_cells("A3:A4")
    assert parse(saved(book), "a.xlsx").text.split("\n") == [
        "Sheet | Zone: EUR | 2023 Q1: 1 | 2023 Q2: 2",
        "Sheet | Zone: EUR | 2023 Q1: 3 | 2023 Q2: 4",
    ]


def test_what_a_sheet_hides_or_has_not_computed_is_noted() -> None:
    book = Workbook()
    sheet = book.active
    for row in (["Name", "Secret", "Sum"], ["Ann", "x1", "=1+1"], ["Bob", "x2", 5]):
        sheet.append(row)
    sheet.column_dimensions["B"].hidden = True
    sheet.row_dimensions[3].hidden = True
    book.create_sheet("Old").sheet_state = "hidden"
    book["Old"].append(["gone"])
    parsed = parse(saved(book), "a.xlsx")
    assert parsed.text == "Sheet | Name: Ann"
    assert sorted(note.partition(" (")[0] for note in parsed.notes) == [
        "sheet Old is hidden and was not read",
        "sheet Sheet: formulas without a stored result were not read",
        "sheet Sheet: hidden columns were not read",
        "sheet Sheet: hidden rows were not read",
    ]


def test_a_title_above_the_heading_is_kept_and_a_sheet_is_a_page() -> None:
    book = Workbook()
    for row in (["Report of 2024"], ["Name", "Age"], ["Ann", 7]):
        book.active.append(row)
    book.create_sheet("Two").append(["alone"])
    parsed = parse(saved(book), "a.xlsx")
    assert [parsed.text[page.start : page.end].strip() for page in parsed.pages] == [
        "Sheet | Report of 2024\nSheet | Name: Ann | Age: 7",
        "Two | alone",
    ]


def test_a_damaged_sheet_is_read_as_far_as_it_goes() -> None:
    book = Workbook()
    for number in range(5000):
        book.active.append([f"name {number}", number])
    data = saved(book)
    with zipfile.ZipFile(BytesIO(data)) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    parts[sheet] = parts[sheet][: len(parts[sheet]) // 2]
    parsed = parse(make_files.archive(parts), "a.xlsx")
    assert "Sheet | name 1000 | 1000" in parsed.text
    assert "name 4999" not in parsed.text
    assert re.fullmatch(r"sheet Sheet is damaged \(.*\); what follows row \d+ was not read", parsed.notes[0])
    assert parsed.partial


VALUES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)


@given(st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=2, max_size=6))
def test_every_value_stands_at_its_address(rows: list[list[str]]) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    parsed = parse(buffer.getvalue().encode(), "a.csv")
    read = {place.path[-1]: parsed.text[place.start : place.end] for place in parsed.places}
    headed = "A1" not in read
    for number, row in enumerate(rows[headed:], 1 + headed):
        for column, value in zip("ABC", row, strict=True):
            assert read[f"{column}{number}"].endswith(value)
    for name in rows[0]:
        assert name in parsed.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "Nom;Prix\nHélène;5,50 €\n"),
        ("a.csv", "Nom\tPrix\r\nHélène\t5,50 €"),
        ("a.tsv", "Nom\tPrix\nHélène\t5,50 €\n"),
        ("a.csv", '"Nom","Prix"\n"Hélène","5,50 €"\n'),
        ("a.csv", "Nom|Prix\rHélène|5,50 €\r"),
    ],
)
def test_the_delimiter_is_told_by_the_rows(name: str, text: str) -> None:
    parsed = parse(text.encode(), name)
    assert parsed.text == "Nom: Hélène | Prix: 5,50 €"
    assert said(parsed, "5,50 €") == "Prix, B2"


def test_an_open_quotation_mark_swallows_nothing() -> None:
    parsed = parse(b'Name,Size\nscreen,27"\npipe,"3\nbolt,9\n', "a.csv")
    assert parsed.text.split("\n") == ['Name: screen | Size: 27"', 'Name: pipe | Size: "3', "Name: bolt | Size: 9"]
    assert "never closed" in parsed.notes[0]


@pytest.mark.parametrize(
    ("data", "text"), [(b"1,2\n3,4\n", "1 | 2\n3 | 4"), (b"Name:,Ann\nCity:,Oslo\n", "Name: | Ann\nCity: | Oslo")]
)
def test_numbers_and_labels_are_no_heading(data: bytes, text: str) -> None:
    assert parse(data, "a.csv").text == text


def test_a_word_document_with_all_that_lies_beside_its_text() -> None:
    box = "<w:r><w:pict><w:txbxContent><w:p><w:r><w:t>In a box</w:t></w:r></w:p></w:txbxContent></w:pict></w:r>"
    row = "<w:tr>{}</w:tr>"
    cell = "<w:tc><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:tc>"
    table = "".join(row.format("".join(map(cell.format, cells))) for cells in (("Zone", "Sum"), ("EUR", "1001")))
    body = (
        '<w:p><w:pPr><w:pStyle w:val="Heading2"/></w:pPr><w:r><w:t>Bridges</w:t></w:r></w:p>'
        '<w:p><w:r><w:t>It opened</w:t></w:r><w:r><w:footnoteReference w:id="2"/></w:r><w:r><w:t>.</w:t></w:r>'
        f"<w:r><w:rPr><w:vanish/></w:rPr><w:t>secret</w:t></w:r><w:del><w:r><w:t>no</w:t></w:r></w:del>{box}</w:p>"
        f"<w:tbl>{table}</w:tbl>"
    )
    notes = '<w:footnotes {W}><w:footnote w:id="2"><w:p><w:r><w:t>In 1890.</w:t></w:r></w:p></w:footnote></w:footnotes>'
    header = "<w:hdr {W}><w:p><w:r><w:t>Confidential</w:t></w:r></w:p></w:hdr>"
    extra = {"word/footnotes.xml": notes.replace("{W}", W).encode(), "word/comments.xml": b"<x/>"}
    extra |= {f"word/header{n}.xml": header.replace("{W}", W).encode() for n in (1, 2)}
    parsed = parse(make_files.docx(body, extra=extra), "a.docx")
    assert parsed.text.split("\n\n") == [
        "## Bridges",
        "It opened[1].",
        "In a box",
        "Zone: EUR | Sum: 1001",
        "[1] In 1890.",
        "Header: Confidential",
    ]
    assert named(parsed) == [("Bridges", 2)]
    places = [said(parsed, words) for words in ("opened", "box", "1001", "1890", "Confidential")]
    assert places == ["paragraph 2", "text box", "table 1, Sum, B2", "footnote 1", "header"]
    assert parsed.notes == ["comments were not read", "hidden text was not read (6 characters)"]


def test_headings_and_captions_of_a_word_document_are_told_by_their_styles() -> None:
    style = '<w:style w:styleId="{}"><w:name w:val="{}"/>{}</w:style>'
    level = '<w:pPr><w:outlineLvl w:val="{}"/></w:pPr>'
    styles = [("Ueb1", "heading 1", ""), ("Mine", "My own", level.format(2)), ("Beschr", "caption", "")]
    root = f"<w:styles {W}>{''.join(style.format(*one) for one in styles)}</w:styles>"
    paragraph = '<w:p><w:pPr><w:pStyle w:val="{}"/>{}</w:pPr><w:r><w:t>{}</w:t></w:r></w:p>'
    cell = "<w:tc><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:tc>"
    rows = "".join(f"<w:tr>{''.join(map(cell.format, cells))}</w:tr>" for cells in (("Zone", "Sum"), ("EUR", "1001")))
    body = (
        paragraph.format("Ueb1", "", "Mill")
        + paragraph.format("Mine", "", "Oil")
        + paragraph.format("", '<w:outlineLvl w:val="1"/>', "Gate")
        + paragraph.format("Beschr", "", "Table 1: Sums")
        + f"<w:tbl>{rows}</w:tbl>"
    )
    parsed = parse(make_files.docx(body, extra={"word/styles.xml": root.encode()}), "a.docx")
    assert named(parsed) == [("Mill", 1), ("Oil", 3), ("Gate", 2)]
    assert parsed.text == "# Mill\n\n### Oil\n\n## Gate\n\nTable 1: Sums\n\nZone: EUR | Sum: 1001"
    assert [table.header for table in parsed.tables] == ["Table 1: Sums"]


def mail(*attachments: tuple[str, bytes, str]) -> bytes:
    message = EmailMessage()
    message["Subject"], message["From"] = "Figures", "ann@example.org"
    message.set_content("See the files.")
    for name, data, kind in attachments:
        message.add_attachment(data, maintype=kind.split("/")[0], subtype=kind.split("/")[1], filename=name)
    return message.as_bytes()


def test_attachments_are_read_and_those_that_cannot_be_are_noted() -> None:
    data = mail(
        ("sums.csv", b"Zone,Sum\nEUR,1001\n", "text/csv"),
        ("pages.pdf", make_files.pdf(["First.", "Second."]), "application/pdf"),
        ("broken.pdf", b"%PDF-1.4 broken", "application/pdf"),
        ("logo.png", b"\x89PNG\r\n\x1a\n", "image/png"),
    )
    parsed = parse(data, "a.eml")
    assert said(parsed, "See the files.") == "body"
    assert said(parsed, "1001") == "attachment sums.csv, Sum, B2"
    assert said(parsed, "Second.") == "attachment pages.pdf, page 2"
    assert len(parsed.notes) == 2
    assert parsed.notes[0].startswith("attachment broken.pdf was not read: broken.pdf")
    assert parsed.notes[1] == "attachment logo.png was not read: it is an image"
    assert parsed.partial


def test_mails_within_mails_end_and_attachments_are_counted() -> None:
    data = mail()
    for _ in range(6):
        outer = EmailMessage()
        outer["Subject"] = "Fwd"
        outer.set_content("see below")
        outer.add_attachment(data, maintype="application", subtype="octet-stream", filename="inner.eml")
        data = outer.as_bytes()
    parsed = parse(data, "a.eml")
    assert any("lies in more than 3 mails" in note for note in parsed.notes)
    many = parse(mail(*[(f"{n}.txt", b"word", "text/plain") for n in range(5)]), "a.eml", Limits(attachments=2))
    assert many.text.count("word") == 2
    assert many.notes == ["5 attachments: those after the first 2 were not read"]


def test_a_mail_that_is_one_file() -> None:
    message = EmailMessage()
    message["Subject"] = "The file"
    message.set_content(b"Zone,Sum\nEUR,1001\n", maintype="text", subtype="csv", filename="sums.csv")
    assert said(parse(message.as_bytes(), "a.eml"), "1001") == "attachment sums.csv, Sum, B2"


def test_slides_with_their_table_and_notes_and_without_what_is_hidden() -> None:
    from pptx import Presentation
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE
    from pptx.util import Inches

    presentation = Presentation()
    for title in ("Bridges", "Secret"):
        slide = presentation.slides.add_slide(presentation.slide_layouts[5])
        slide.shapes.title.text = title
    slide._element.set("show", "0")
    first = presentation.slides[0]
    table = first.shapes.add_table(2, 2, Inches(1), Inches(3), Inches(4), Inches(1)).table
    for row, values in enumerate((("Zone", "Sum"), ("EUR", "1001"))):
        for column, value in enumerate(values):
            table.cell(row, column).text = value
    figures = CategoryChartData()
    figures.categories = ["Q1", "Q2"]
    figures.add_series("Sales", (1234567, 0.3))
    first.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, Inches(1), Inches(5), Inches(4), Inches(2), figures)
    first.notes_slide.notes_text_frame.text = "Speak slowly."
    buffer = BytesIO()
    presentation.save(buffer)
    parsed = parse(buffer.getvalue(), "a.pptx")
    assert parsed.text.split("\n\n") == [
        "Bridges",
        "Zone: EUR | Sum: 1001",
        "Sales: Q1: 1234567, Q2: 0.3",
        "Speak slowly.",
    ]
    assert (said(parsed, "1001"), said(parsed, "slowly")) == ("slide 1, Sum, B2", "slide 1, notes")
    assert named(parsed) == [("Bridges", 1)]
    assert parsed.notes == ["slide 2 is hidden and was not read"]


def test_rich_text() -> None:
    data = (
        rb"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0 Times;}}{\*\generator x;}It\'92s \u8364?5 \b bold\b0 .\par "
        rb"Next {\v secret}line \u-10179?\u-8704?.{\pict 00ff}}"
    )
    parsed = parse(data, "a.rtf")
    assert parsed.text == "It’s €5 bold.\n\nNext line 😀."
    assert said(parsed, "line") == "paragraph 2"
    assert parsed.notes == [
        "pictures and embedded objects were not read (1)",
        "hidden text was not read (6 characters)",
    ]


def test_open_document() -> None:
    names = " ".join(
        f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for name in ("office", "text", "table")
    )
    cell = "<table:table-cell><text:p>{}</text:p></table:table-cell>"
    rows = "".join(
        f"<table:table-row>{''.join(map(cell.format, cells))}</table:table-row>"
        for cells in (("Zone", "Sum"), ("EUR", "9"))
    )
    content = (
        f"<office:document-content {names}><office:body><office:text>"
        '<text:h text:outline-level="1">Bridges</text:h><text:p>It<text:s text:c="2"/>opened.'
        "<office:annotation><text:p>remark</text:p></office:annotation></text:p>"
        f"<table:table>{rows}</table:table></office:text></office:body></office:document-content>"
    )
    mimetype = b"application/vnd.oasis.opendocument.text"
    parsed = parse(make_files.archive({"mimetype": mimetype, "content.xml": content.encode()}), "a.odt")
    assert parsed.text == "# Bridges\n\nIt  opened.\n\nZone: EUR | Sum: 9"
    assert said(parsed, "9") == "table 1, Sum, B2"
    assert named(parsed) == [("Bridges", 1)]
    assert parsed.notes == ["comments were not read"]


def test_chapters_are_named_and_those_that_are_missing_noted() -> None:
    table = "<table><tr><th>Zone<th>Sum<tr><td>EUR<td>1001</table>"
    chapters = [f"<html><body><h1>The {name}</h1><p>It stood.</p>{table}</body></html>" for name in ("Mill", "Bridge")]
    parsed = parse(make_files.epub(chapters), "a.epub")
    assert said(parsed, "stood") == "chapter 1, The Mill"
    assert place_of(parsed.places, parsed.pages, len(parsed.text) - 4, len(parsed.text)) == "chapter 2, The Bridge"
    assert named(parsed) == [("The Mill", 1), ("The Bridge", 1)]
    assert [table.header for table in parsed.tables] == ["Zone\tSum"] * 2


def test_the_table_of_a_mail_in_html_is_one() -> None:
    message = EmailMessage()
    message["Subject"] = "Figures"
    message.set_content("<h2>Sums</h2><table><tr><th>Zone<th>Sum<tr><td>EUR<td>1001</table>", subtype="html")
    parsed = parse(message.as_bytes(), "a.eml")
    assert said(parsed, "1001") == "body"
    assert named(parsed) == [("Sums", 2)]
    assert [parsed.text[start:end] for start, end in parsed.tables[0].rows] == ["EUR\t1001"]


@pytest.mark.parametrize(
    ("name", "data", "remedy"),
    [
        ("a.doc", make_files.ole("WordDocument"), r"Word 97 to 2003 \(.doc\); save it as DOCX"),
        ("a.xls", make_files.ole("Workbook"), r"Excel 97 to 2003 \(.xls\); save it as XLSX"),
        ("a.msg", make_files.ole("__properties_version1.0"), r"Outlook message \(.msg\); save it as .eml"),
        ("a.zip", make_files.archive({"a.txt": b"x", "b.txt": b"y"}), "zip archive; unpack it"),
    ],
)
def test_what_is_not_read_is_refused_with_the_remedy(name: str, data: bytes, remedy: str) -> None:
    with pytest.raises(UnsupportedFile, match=remedy):
        parse(data, name)
