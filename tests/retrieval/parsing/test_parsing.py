"""Files to text: exact offsets, page numbers, and errors that name the cause."""

from __future__ import annotations

from pathlib import Path

import make_files
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import (
    DamagedFile,
    EmptyFile,
    EncryptedFile,
    OversizedFile,
    UnreadableFile,
    UnsupportedFile,
    WronglyNamedFile,
)
from retrieval.parsing import Limits, page_at, parse


def test_plain_text_is_the_files_own_text(shared: Path) -> None:
    data = (shared / "corpus" / "news_from_nowhere.txt").read_bytes()
    parsed = parse(data, "news_from_nowhere.txt")
    assert parsed.text == data.decode("utf-8")
    assert "\r\n" in parsed.text
    assert [(page.number, page.start, page.end) for page in parsed.pages] == [(1, 0, len(parsed.text))]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "cp1252", "utf-8"])
def test_encodings(encoding: str) -> None:
    text = "Café — “naïve” façade; the garçon’s résumé, déjà vu."
    parsed = parse(text.encode(encoding), "a.txt")
    assert parsed.text == text
    assert bool(parsed.notes) == (not encoding.startswith("utf-8"))


@given(st.text(min_size=1))
def test_any_utf8_text_is_kept_but_for_what_cannot_be_stored(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    try:
        parsed = parse(data, "a.txt")
    except UnreadableFile:
        return
    parsed.text.encode("utf-8")
    assert "\x00" not in parsed.text
    if text.isprintable() and not text.startswith("\ufeff"):
        assert parsed.text == text


def test_html() -> None:
    markup = """<!DOCTYPE html><html><head><title>Title</title><style>p{}</style></head><body>
    <h1>One &amp; two</h1><p>A <b>bold</b> word,\n next line.<br>After break</p><script>evil()</script>
    <table><tr><td>a</td><td>b</td></tr></table><pre>  kept
      as is</pre><ul><li>x<li>y</ul></body></html>"""
    assert parse(markup.encode(), "a.html").text == (
        "Title\n\nOne & two\n\nA bold word, next line.\nAfter break\n\na\tb\n\n  kept\n      as is\n\nx\ny"
    )


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("<html>", "text/html"),
        ('\n<?xml version="1.0"?> <!-- one --><!-- two -->\n<!DOCTYPE html>', "text/html"),
        ("<!-- endless", "text/plain"),
        ("<htmlx>", "text/plain"),
        ("<!---->" * 500, "text/plain"),
    ],
)
def test_a_file_without_an_ending_is_html_where_it_begins_so(head: str, kind: str) -> None:
    assert parse(f"{head}<p>word".encode(), "page").media_type == kind
    assert parse(f"{head}<p>word".encode(), "page.txt").media_type == "text/plain"


def test_html_charset() -> None:
    assert parse('<meta charset="cp1251"><p>Привет</p>'.encode("cp1251"), "a.html").text == "Привет"


def test_pdf_pages_and_offsets(shared: Path) -> None:
    parsed = parse((shared / "corpus" / "introduction_to_mathematics.pdf").read_bytes(), "m.pdf")
    assert len(parsed.pages) == 228
    at = parsed.text.index("is no mathematical certainty whatever")
    page = parsed.pages[page_at(parsed.pages, at) - 1]
    assert page.start <= at < page.end
    assert page.start == at, "the running header above is left out"
    assert "definite" in parsed.text, "words broken over lines are joined"
    assert "\r" not in parsed.text


def test_a_made_pdf() -> None:
    parsed = parse(make_files.pdf(["First page.", "Second\npage."]), "a.pdf")
    assert [parsed.text[page.start : page.end] for page in parsed.pages] == ["First page.", "Second\npage."]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.docx", make_files.docx(make_files.paragraph("Hello from Word.")), "Hello from Word."),
        ("a.xlsx", make_files.xlsx([["Name", "Age"], ["Ann", "7"]]), "Sheet | Name: Ann | Age: 7"),
        ("a.epub", make_files.epub(["<html><body><p>Chapter one.</p></body></html>"]), "Chapter one."),
        ("a.csv", "Name,Age\nAnn,7\n".encode("utf-16"), "Name: Ann | Age: 7"),
        ("a.eml", b"Subject: Hi\nFrom: ann@x.org\nContent-Type: text/html\n\n<p>Good <b>day</b></p>", "Good day"),
    ],
)
def test_office_files(name: str, data: bytes, words: str) -> None:
    assert words in parse(data, name).text


def test_slides_are_pages() -> None:
    parsed = parse(make_files.pptx(["Alpha", "Beta"]), "a.pptx")
    assert len(parsed.pages) == 2
    assert page_at(parsed.pages, parsed.text.index("Beta")) == 2
    assert "<!--" not in parsed.text


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        ("a.txt", b"", EmptyFile, r"a\.txt is empty"),
        ("a.txt", b" \n", EmptyFile, "nothing but white space"),
        ("a.pdf", make_files.pdf([""]), EmptyFile, "OCR"),
        ("a.pdf", make_files.encrypted_pdf(), EncryptedFile, "password"),
        ("a.docx", make_files.ole("EncryptedPackage"), EncryptedFile, "password"),
        ("a.pdf", make_files.pdf(["x"])[:90], DamagedFile, "cut off"),
        ("a.docx", make_files.docx("x")[:-30], DamagedFile, "cut off"),
        ("a.pdf", b"text", WronglyNamedFile, "its content is text"),
        ("a.txt", make_files.pdf(["x"]), WronglyNamedFile, r"rename it to end in \.pdf"),
        ("a.docx", make_files.xlsx([["x"]]), WronglyNamedFile, "XLSX"),
        ("a.xyz", b"text", UnsupportedFile, r"give it the ending \.txt"),
        ("a.png", b"\x89PNG\r\n\x1a\n", UnsupportedFile, "PNG image"),
        ("a.zip", make_files.archive({"a": b"b"}), UnsupportedFile, "unpack it"),
        ("a.doc", make_files.ole(), UnsupportedFile, "old Office format"),
        ("a.txt", b"a\0b", UnsupportedFile, "binary"),
    ],
)
def test_errors_name_the_file_and_the_remedy(name: str, data: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        parse(data, name)
    assert name in str(caught.value)


def test_limits() -> None:
    with pytest.raises(OversizedFile, match="MiB and the limit"):
        parse(b"x" * (2 << 20), "a.txt", Limits(file_bytes=1 << 20))
    with pytest.raises(OversizedFile, match="2 pages and the limit is 1"):
        parse(make_files.pdf(["a", "b"]), "a.pdf", Limits(pdf_pages=1))
    with pytest.raises(OversizedFile, match="characters"):
        parse(b"word " * 100, "a.txt", Limits(text_chars=100))
    with pytest.raises(OversizedFile, match="would expand"):
        parse(make_files.docx("", extra={"x": b"\0" * 20_000_000}), "a.docx")
