"""The page's pure modules, run in the browser on data made here."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.browser


def call(folio: Any, module: str, expression: str, argument: Any) -> Any:
    """`expression` over the exports `m` of a module and `x`, the argument."""
    script = f"async x => {{ const m = await import('/js/{module}.js'); return {expression}; }}"
    return folio.page.evaluate(script, argument)


def cite(start: int, end: int, label: int, document: str = "d", at: int = 0) -> dict[str, Any]:
    """A citation of the document's characters at:at+1 at start:end of the answer."""
    return {"document": document, "start": at, "end": at + 1, "label": label, "answer_start": start, "answer_end": end}


def pieces(folio: Any, **answer: Any) -> list[tuple[str, Any, bool, list[int]]]:
    found = call(folio, "pieces", "m.pieces(x)", answer)
    return [(piece["text"], piece["source"], piece["unsupported"], piece["chips"]) for piece in found]


def test_chips_follow_what_they_cite_and_replace_the_markers(folio: Any) -> None:
    text = 'It says "grey" [2]. Also this [3], and [9].'
    citations = [cite(8, 14, 2), cite(30, 33, 3, at=5)]
    assert pieces(folio, text=text, citations=citations) == [
        ('It says "grey"', None, False, [1]),
        (" ", None, False, []),
        (". Also this ", None, False, []),
        ("", None, False, [2]),
        (", and [9].", None, False, []),
    ]


def test_the_same_span_cited_twice_has_one_number(folio: Any) -> None:
    citations = [cite(0, 3, 1), cite(4, 7, 1), cite(8, 11, 1, at=9)]
    assert [chips for *_, chips in pieces(folio, text="one two six", citations=citations)] == [[1], [1], [2]]


def test_offsets_are_code_points(folio: Any) -> None:
    doubts = [{"start": 5, "end": 7}]
    found = pieces(folio, text="\U0001f4d6\U0001f4d6ab cd", citations=[cite(2, 4, 1)], unsupported=doubts)
    assert found == [("\U0001f4d6\U0001f4d6ab", None, False, [1]), (" ", None, False, []), ("cd", None, True, [])]


def test_runs_are_coloured_only_where_they_make_up_the_answer(folio: Any) -> None:
    runs = [{"text": " a b", "source": "suffix"}, {"text": " c", "source": "target"}]
    assert pieces(folio, text="a b c", runs=runs) == [("a b", "suffix", False, []), (" c", "target", False, [])]
    assert pieces(folio, text="quite another", runs=runs) == [("quite another", None, False, [])]


def test_the_pieces_are_the_answer(folio: Any) -> None:
    text = "x [1] yy [2] zzz"
    found = pieces(folio, text=text, citations=[cite(0, 1, 7)], unsupported=[{"start": 2, "end": 9}])
    assert "".join(piece[0] for piece in found) == text


@pytest.mark.parametrize("text", ["", "one", "a\n\nb", "a\r\n\r\nb\r\n", "\n\n", "a\n \t\nb\n\n\nc"])
def test_paragraphs_are_the_text(folio: Any, text: str) -> None:
    spans = call(folio, "text", "m.paragraphs(x)", text)
    assert "".join(text[start:end] for start, end in spans) == text


def test_only_line_breaks_of_full_lines_flow(folio: Any) -> None:
    line = "A line that is as long as the lines of a printed page usually are,"
    text = f"{line}\nand goes on.\n\nA list:\n- one\n- two\n{line}\n- an item"
    flowed = call(folio, "text", "m.flowed(x)", text)
    assert flowed == f"{line} and goes on.\n\nA list:\n- one\n- two\n{line}\n- an item"
    assert len(call(folio, "text", "m.flowed(x)", f"{line}\r\nmore")) == len(f"{line}\r\nmore")


def test_events_survive_any_cut_of_the_stream(folio: Any) -> None:
    message = '{"text": "caf\u00e9 \U0001f4d6"}'
    stream = f": ping\n\nevent: message\ndata: {message}\n\nevent: done\r\ndata: 1\r\ndata: 2\r\n\r\ndata: last"
    script = """(async () => {
        const bytes = new TextEncoder().encode(x.stream);
        const body = new ReadableStream({ start(to) {
            for (let at = 0; at < bytes.length; at += x.size) to.enqueue(bytes.slice(at, at + x.size));
            to.close();
        } });
        const found = [];
        for await (const { event, data } of m.events(body)) found.push([event, data]);
        return found;
    })()"""
    expected = [["message", message], ["done", "1\n2"], ["message", "last"]]
    for size in (1, 2, 3, 7, 1000):
        assert call(folio, "sse", script, {"stream": stream, "size": size}) == expected


def test_the_history_is_the_last_conversation_bounded_in_size(folio: Any) -> None:
    def turn(number: int, fresh: bool = False, size: int = 1, **more: Any) -> dict[str, Any]:
        return {"question": f"q{number}", "text": f"a{number}" * size, "fresh": fresh, "error": None, **more}

    def history(*turns: dict[str, Any]) -> list[str]:
        return [each["content"] for each in call(folio, "conversation", "m.historyOf(x)", list(turns))]

    assert history() == []
    assert history(turn(1), turn(2, fresh=True), turn(3)) == ["q2", "a2", "q3", "a3"]
    assert history(turn(1), turn(2, text=""), turn(3, error={"title": "Gone"})) == ["q1", "a1"]
    assert history(turn(1), turn(2, size=49_996), turn(3)) == ["q2", "a2" * 49_996, "q3", "a3"]
    assert history(turn(1), turn(2, size=50_000), turn(3)) == ["q3", "a3"]
