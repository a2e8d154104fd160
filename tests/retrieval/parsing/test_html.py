"""HTML and Markdown: the content of a page, without what surrounds it and without what its errors would swallow."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval.parsing import parse
from retrieval.parsing.html import html_to_text
from retrieval.parsing.markdown import without_tags

CONTENT = "<p>The keeper of the northern gate is Anna, and she lights the lamp of the mill every night of the year.</p>"


@pytest.mark.parametrize("tag", ["svg", "noscript", "template"])
def test_an_unclosed_tag_swallows_nothing(tag: str, shared: Path) -> None:
    page = (shared / "cases" / "svg_unclosed.html").read_text().replace("svg>", f"{tag}>")
    parsed = parse(page.encode(), "a.html")
    assert parsed.text == "Before.\n\nAfter the unclosed svg.\n\nThe keeper is Anna."


@pytest.mark.parametrize("start", ["<script>", "<style>", "<!--"])
def test_what_stays_hidden_is_noted(start: str) -> None:
    parsed = parse(f"{CONTENT}{start}<p>Gone.</p>".encode(), "a.html")
    assert "not closed; what follows it was not read" in parsed.notes[0]


AROUND = [
    "<nav><a>Home</a><a>About</a></nav>",
    "<div role='navigation'>Home</div>",
    "<div id='cookie-banner'>Home of cookies</div>",
    "<header>Home of the site</header>",
    "<footer>Home, imprint</footer>",
    "<aside>Home and more</aside>",
    "<div class='interlanguage-links'>Home</div>",
    "<div style='display: none'>Home</div>",
    "<ul>" + "<li><a>Home</a>" * 12 + "</ul>",
]


@pytest.mark.parametrize("around", AROUND)
def test_what_surrounds_the_content_is_left_out_and_noted(around: str) -> None:
    parsed = parse(f"<html><body>{around}<main>{CONTENT}</main>{around}</body></html>".encode(), "a.html")
    assert parsed.text == CONTENT[3:-4]
    assert "Home" in parsed.notes[0]


def test_a_page_of_links_alone_is_kept() -> None:
    page = "<ul>" + "".join(f"<li><a>Document {number}</a>" for number in range(30)) + "</ul>"
    assert parse(page.encode(), "a.html").text.count("Document") == 30


def test_a_menu_that_is_not_closed_hides_nothing() -> None:
    for end in ("", "</body></html>"):
        page = f"<body><p>{'More to read here. ' * 9}</p><nav><a>Home</a>{CONTENT}{end}"
        assert "Anna" in parse(page.encode(), "a.html").text


def test_regions_as_deep_as_can_be_cost_no_recursion() -> None:
    page = f"{'<nav>' * 50_000}Home{'</nav>' * 50_000}{CONTENT}"
    assert parse(page.encode(), "a.html").text == CONTENT[3:-4]


def test_the_header_of_an_article_is_content() -> None:
    page = f"<header>Site</header><article><header><h1>Gates</h1></header>{CONTENT}</article>"
    assert parse(page.encode(), "a.html").text.startswith("Gates")


def test_mail_keeps_all_that_is_visible() -> None:
    assert html_to_text(f"<header>Dear all</header>{CONTENT}").startswith("Dear all")


def test_a_table_is_rows_with_caption_and_header() -> None:
    page = f"""{CONTENT}<table><caption>Oil used</caption><tr><th>Year<th>Litres<tr><td>1890<td>12
    <tr><th>1891<td>40</table>"""
    parsed = parse(page.encode(), "a.html")
    [table] = parsed.tables
    assert table.header == "Oil used\nYear\tLitres"
    assert [parsed.text[start:end] for start, end in table.rows] == ["1890\t12", "1891\t40"]


def test_markdown_loses_its_html_tags_but_not_its_code() -> None:
    code = "`<b>` Vec<String> <https://a.org>\n\n```\n<p>\n```\n"
    text = f'<div align="center">\n\n# Gate<br>house\n\n</div>\n\n{code}<!-- x -->'
    stored, count = without_tags(text)
    assert stored == f"\n\n# Gate\nhouse\n\n\n\n{code}"
    assert count == 4
    parsed = parse(text.encode(), "a.md")
    assert (parsed.text, len(parsed.notes)) == (stored, 1)
    assert parse(text.encode(), "a.txt").text == text


@pytest.mark.parametrize("says", ["Skip to content", "Jump to navigation", "Zum Inhalt", "Aller au contenu"])
def test_a_link_that_skips_the_menus_is_no_content(says: str) -> None:
    markup = f"<body><a href='#content'>{says}</a><h1>Mill</h1><p>It <a href='#note'>stands</a> by the river.</p>"
    assert parse(markup.encode(), "a.html").text == "Mill\n\nIt stands by the river."


def test_links_to_other_articles_are_told_by_the_name_of_their_list() -> None:
    more = "<div class='story-related'><h2>More</h2><p><a href='/x'>A ship sank</a> 4 hours ago</p></div>"
    text = parse(f"<p>{'The mill stands by the river. ' * 9}</p>{more}".encode(), "a.html").text
    assert "ship" not in text


def test_what_holds_most_of_the_page_is_its_content_whatever_its_name() -> None:
    page = f"<body><div class='page menu'><nav>Home, About</nav><p>{'The mill stands. ' * 20}</p></div></body>"
    assert parse(page.encode(), "a.html").text == ("The mill stands. " * 20).strip()
