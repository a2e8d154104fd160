"""The colours of `folio ask --explain`."""

from __future__ import annotations

import io

from rich.console import Console

from service.answering.answer import Answer
from service.cli.answers import _figures
from service.cli.explaining import SourceColours


def written(**options) -> tuple[SourceColours, io.StringIO]:
    sink = io.StringIO()
    return SourceColours(Console(file=sink, highlight=False, soft_wrap=True, width=40, **options)), sink


def message(*tokens: tuple[str, str]) -> dict:
    return {
        "text": "".join(text for text, _ in tokens),
        "tokens": [{"text": text, "source": source} for text, source in tokens],
    }


def test_every_token_has_the_colour_of_its_source():
    colours, sink = written(force_terminal=True, color_system="standard", legacy_windows=False)
    colours.write(message(("The", "target"), (" mill", "suffix"), (" burnt", "suffix")))
    colours.write(message((" down", "recycling")))
    shown = sink.getvalue()
    assert shown.startswith("The\x1b[32m mill")
    assert "\x1b[36m down" in shown
    colours.legend()
    legend = sink.getvalue()[len(shown) :]
    assert "\x1b[32msuffix 50%" in legend
    assert "\x1b[36mrecycling 25%" in legend
    assert "the model itself 25%" in legend


def test_without_colours_the_text_is_exact_and_the_legend_tells():
    colours, sink = written(no_color=True, force_terminal=False)
    text = "A [bold]long[/bold] line that a terminal of forty columns would have to break somewhere\nor else"
    colours.write({"text": text})
    assert sink.getvalue() == text
    colours.legend()
    assert "the model itself 100%" in sink.getvalue()


def test_each_claim_is_shown_with_its_support_and_citations():
    colours, sink = written()
    claims = [{"text": "It is grey.", "support": "attributed"}, {"text": "It is old.", "support": "none"}]
    answer = Answer(claims=claims, citations=[{"claim": 0}, {"claim": 0}])
    colours.claims(answer)
    assert sink.getvalue() == "attributed It is grey. [1] [2]\nnone       It is old.\n"


def test_the_figures_name_what_is_lossy():
    stats = {
        "prompt_tokens": 9,
        "output_tokens": 3,
        "retrieval_ms": 1,
        "drafter": "trained:judge",
        "attention": "dense",
    }
    assert _figures(stats | {"lossy": True}).endswith("lossy: trained:judge")
    assert _figures(stats | {"lossy": True, "attention": "stream"}).endswith("lossy: stream")
    assert "lossy" not in _figures(stats | {"lossy": False})
