"""PDFs as people read them: columns, tables, forms, running headers, words that printing takes apart."""

from __future__ import annotations

from pathlib import Path

import make_files
import pytest

from retrieval.parsing import parse
from retrieval.parsing.pdf import ocr
from retrieval.parsing.pdf.boxes import boxes
from retrieval.parsing.pdf.lettering import mend_hyphens

LEFT = ["The committee of the mill reviewed", "the annual report of the keeper and", "found that the northern gate had",
        "been left open on nine nights."]  # fmt: skip
RIGHT = ["The harbour master wrote that the", "lamp burned forty litres of oil in", "the first week of March, and that",
         "the price had doubled since then."]  # fmt: skip
Piece = tuple[float, float, float, str]


def column(x: float, lines: list[str], top: float = 700, size: float = 11) -> list[Piece]:
    return [(x, top - 14 * number, size, line) for number, line in enumerate(lines)]


def read(pages: list[list[Piece]]) -> str:
    return parse(make_files.placed_pdf(pages), "a.pdf").text


ROWWISE = [piece for pair in zip(column(60, LEFT), column(320, RIGHT), strict=True) for piece in pair]


@pytest.mark.parametrize(
    "pieces",
    [ROWWISE, column(60, LEFT) + column(320, RIGHT), column(320, RIGHT) + column(60, LEFT)],
    ids=["row by row", "column by column", "right column first"],
)
def test_columns_are_read_one_after_the_other(pieces: list[Piece]) -> None:
    assert read([pieces]) == "\n".join([*LEFT, *RIGHT])


def test_columns_under_a_title_and_over_a_line_across() -> None:
    title = (60.0, 740.0, 20.0, "Report of the mill and of the harbour")
    across = (
        60.0,
        600.0,
        11.0,
        "Both were read aloud to the whole of the assembly on the first day of the next month.",
    )
    assert read([[title, *ROWWISE, across]]) == "\n".join([title[3], "", *LEFT, *RIGHT, "", across[3]])


def test_columns_of_the_shared_case(shared: Path) -> None:
    data = (shared / "cases" / "two_col_rowwise.pdf").read_bytes()
    parsed = parse(data, "two.pdf")
    assert "found that the northern gate had\nbeen left open on nine nights.\nThe harbour master" in parsed.text
    start = parsed.text.index("been left open on nine nights.")
    [left] = boxes(data, "two.pdf", parsed.pages, parsed.text, start, start + 30)
    assert left.right < left.page_width / 2, "the mark stays in its column"


TABLE = [["Year", "Oil", "Price"], ["1890", "12 litres", "4.50"], ["1891", "40 litres", "9.00"]]


def table(top: float) -> list[Piece]:
    return [(72 + 140 * x, top - 14 * y, 11, cell) for y, row in enumerate(TABLE) for x, cell in enumerate(row)]


def test_a_table_is_rows_with_its_caption_and_header() -> None:
    caption = (72.0, 664.0, 11.0, "Table 2: What the lamp burned")
    before = column(72, ["The keeper kept a book of all the oil that the lamp burned.", "It is copied here."])
    parsed = parse(make_files.placed_pdf([[*before, caption, *table(650)]]), "t.pdf")
    assert parsed.text.endswith(
        "\nTable 2: What the lamp burned\nYear\tOil\tPrice\n1890\t12 litres\t4.50\n1891\t40 litres\t9.00"
    )
    [found] = parsed.tables
    assert found.header == "Table 2: What the lamp burned\nYear\tOil\tPrice"
    assert [parsed.text[start:end] for start, end in found.rows] == ["1890\t12 litres\t4.50", "1891\t40 litres\t9.00"]


def test_form_values_stand_beside_their_labels(shared: Path) -> None:
    data = (shared / "cases" / "form.pdf").read_bytes()
    parsed = parse(data, "form.pdf")
    assert parsed.text == "Name of the keeper: Anna Lindqvist\nGate number: 17"
    start = parsed.text.index("Anna")
    [box] = boxes(data, "form.pdf", parsed.pages, parsed.text, start, start + 4)
    [label] = boxes(data, "form.pdf", parsed.pages, parsed.text, 0, 18)
    assert box.left >= label.right - 1
    assert box.bottom < label.top
    assert label.bottom < box.top


def test_pages_that_are_pictures_are_named(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "available", lambda: False)
    parsed = parse((shared / "cases" / "mixed_scan.pdf").read_bytes(), "scan.pdf")
    assert parsed.notes[0].startswith("pages 2 to 6 are pictures (a scan?) with little or no text layer")
    assert (parsed.partial, len(parsed.pages)) == (True, 6)


def test_an_empty_page_is_no_unread_page() -> None:
    parsed = parse(make_files.pdf(["Words.", ""]), "a.pdf")
    assert (parsed.notes, parsed.unread_share) == ([], 0.0)


BODY = ["The mill was built before the bridge was.", "Nobody knows who paid for its wheel.", "The lamp is newer.",
        "Its keeper came from the north.", "He left after nine years."]  # fmt: skip


def with_furniture(number: int) -> list[Piece]:
    words = ["alpha", "beta", "gamma", "delta", "epsilon"][number % 5]
    body = column(72, [f"{line} {words}" for line in BODY], 700)
    return [(72, 760, 9, f"{number + 17} History of the mill"), *body, (300, 40, 9, f"{number + 17}")]


def test_running_headers_and_footers_are_left_out() -> None:
    data = make_files.placed_pdf([with_furniture(number) for number in range(5)])
    parsed = parse(data, "h.pdf")
    assert "History" not in parsed.text
    assert "17" not in parsed.text
    assert parsed.text.count("The mill was built") == 5
    assert parsed.notes == ["running headers and footers were left out on pages 1 to 5, as “17 History of the mill”"]
    start = parsed.text.index("The lamp is newer. gamma")
    [box] = boxes(data, "h.pdf", parsed.pages, parsed.text, start, start + 18)
    assert (box.page, 700 - 2 * 14 - 4 < box.bottom < 700 - 2 * 14 + 4) == (3, True)


def test_lines_that_come_again_on_pages_all_alike_are_text() -> None:
    pages = [column(72, [f"Line {line} of page {page}." for line in range(6)]) for page in range(4)]
    assert read(pages).count("Line 0 of page") == 4


def test_a_footnote_does_not_stand_in_a_sentence() -> None:
    first = [*column(72, ["The lamp was lit.", "The keeper of the gate"]), (72, 80, 8, "1 So called since 1820.")]
    second = column(72, ["was paid by the harbour.", "He lived in the tower."])
    text = read([first, second])
    assert "The keeper of the gate\nwas paid by the harbour." in text
    assert "\n\n1 So called since 1820.\n\n" in text


@pytest.mark.parametrize(
    ("printed", "stored"),
    [
        ("a dual\ufffeencoder", "a dual-encoder"),
        ("a defi\ufffenite end", "a definite end"),
        ("an\ufffeother", "another"),
        ("state-of-the\ufffeart", "state-of-the-art"),
        ("Anglo\ufffeSaxon", "Anglo-Saxon"),
        ("COVID\ufffe19", "COVID-19"),
        ("kno\ufffewn as zorbic\ufffeality", "known as zorbicality"),
    ],
)
def test_a_hyphen_at_a_line_end_stays_where_it_belongs(printed: str, stored: str) -> None:
    assert mend_hyphens(printed, {"encoder"})[0] == stored


def test_the_documents_own_spelling_decides() -> None:
    assert mend_hyphens("re\ufffesign", {"re-sign"})[0] == "re-sign"
    assert mend_hyphens("water\ufffeway", {"waterway"})[0] == "waterway"


def test_hyphens_in_a_file() -> None:
    lines = ["We train a dual-", "encoder on pairs; an encoder is a defi-", "nite thing."]
    data = make_files.placed_pdf([column(72, lines)])
    parsed = parse(data, "a.pdf")
    assert parsed.text == "We train a dual-encoder on pairs; an encoder is a definite thing."
    start = parsed.text.index("thing")
    [box] = boxes(data, "a.pdf", parsed.pages, parsed.text, start, start + 5)
    assert box.top < 700 - 14


@pytest.mark.parametrize(
    ("pieces", "word"),
    [
        ([(72, 700, 11, "a na"), (93.7, 700, 11, "\u00a8"), (93.7, 700, 11, "ive gate")], "naïve"),
        ([(72, 700, 11, "the cafe"), (106.4, 700, 11, "\u00b4"), (111.2, 700, 11, " by the gate")], "café"),
        ([(72, 700, 11, "the fac"), (106, 700, 11, "\u00b8"), (110.6, 700, 11, "ade")], "façade"),
    ],
)
def test_accents_printed_over_their_letters_are_joined(pieces: list[Piece], word: str) -> None:
    assert word in read([pieces])


def test_an_apostrophe_is_no_accent() -> None:
    assert "l\u00b4eau" in read([[(72, 700, 11, "de l\u00b4eau")]])


def test_headings_of_chapters_are_no_running_headers() -> None:
    pages = []
    for number in range(12):
        body = column(72, [f"{line} {'abcdefghijkl'[number]}." for line in BODY])
        pages.append([(72.0, 730.0, 18.0, f"Chapter {number // 3 + 1}"), *body] if number % 3 == 0 else body)
    parsed = parse(make_files.placed_pdf(pages), "c.pdf")
    assert parsed.text.count("Chapter") == 4
    assert [parsed.text[start:end] for start, end, _ in parsed.headings] == [f"Chapter {n}" for n in range(1, 5)]


def test_a_stamp_in_the_margin_stands_in_no_sentence() -> None:
    lines = [f"BT /F1 11 Tf 72 {700 - 14 * n} Td ({line}) Tj ET" for n, line in enumerate(BODY)]
    stamp = "BT /F1 20 Tf 0 1 -1 0 40 620 Tm (arXiv:0908.0054v1 1 Aug 2009) Tj ET"
    content = "\n".join([*lines[:2], stamp, *lines[2:]]).encode()
    parsed = parse(make_files.pdf(["x"], content=content), "a.pdf")
    assert parsed.text.split("\n") == [*BODY, "", "arXiv:0908.0054v1 1 Aug 2009"]


def test_a_foot_with_the_pages_number_may_stand_at_any_height() -> None:
    pages = []
    for number in range(4):
        body = column(72, [f"{line} On page {'abcd'[number]}." for line in BODY[: 5 - number]])
        pages.append([*body, (72, body[-1][1] - 30, 9, f"Journal of Mills 10 {number + 3}")])
    assert "Journal" not in read(pages)
