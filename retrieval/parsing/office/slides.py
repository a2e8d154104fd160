"""PPTX: a page a slide, with its tables, charts' names and speaker's notes. Hidden slides are noted, not stored."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from io import BytesIO
from typing import Any

from pptx import Presentation

from retrieval.errors import EmptyFile
from retrieval.parsing.archives import check_archive
from retrieval.parsing.builder import TextBuilder
from retrieval.parsing.document import ParsedDocument
from retrieval.parsing.limits import Limits
from retrieval.parsing.office.number_format import plain
from retrieval.parsing.sniff import MEDIA_TYPES
from retrieval.parsing.table_text import Cell, write_table

_GROUP, _PICTURE = 6, 13
"""MSO_SHAPE_TYPE"""


def parse_slides(data: bytes, name: str, limits: Limits) -> ParsedDocument:
    """Errors: UnreadableFile and its kinds."""
    check_archive(data, name, limits)
    builder = TextBuilder()
    unread = 0
    slides = list(Presentation(BytesIO(data)).slides)
    for number, slide in enumerate(slides, 1):
        builder.part()
        builder.begin_page()
        if slide._element.get("show") in ("0", "false"):
            builder.notes.append(f"slide {number} is hidden and was not read")
            continue
        before = builder.length
        title = slide.shapes.title
        if title is not None:
            _write(builder, title.text_frame.text, (f"slide {number}",), heading=True)
        others = [shape for shape in slide.shapes if title is None or shape.shape_id != title.shape_id]
        pictures = _write_shapes(builder, _in_order(others), (f"slide {number}",))
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            _write(builder, slide.notes_slide.notes_text_frame.text, (f"slide {number}", "notes"))
        if pictures:
            alone = builder.length == before
            unread += alone
            what = "only pictures or diagrams" if alone else "pictures or diagrams"
            builder.notes.append(f"slide {number}: {what}, which were not read ({pictures})")
    if not builder.length:
        raise EmptyFile(f"{name} has {len(slides)} slides but no text in them; nothing to ingest")
    return builder.document(MEDIA_TYPES["pptx"], unread_share=unread / max(len(slides), 1))


def _in_order(shapes: Iterable[Any]) -> list[Any]:
    """From top to bottom, then left to right; those without a position of their own first."""
    return sorted(shapes, key=lambda shape: (shape.top or 0, shape.left or 0))


def _write_shapes(builder: TextBuilder, shapes: Iterable[Any], path: tuple[str, ...]) -> int:
    """Returns how many pictures and diagrams there were."""
    pictures = 0
    for shape in shapes:
        kind = _kind(shape)
        if kind == _GROUP:
            pictures += _write_shapes(builder, _in_order(shape.shapes), path)
        elif shape.has_text_frame:
            _write(builder, shape.text_frame.text, path)
        elif shape.has_table:
            rows = enumerate(shape.table.rows, 1)
            builder.part("\n\n")
            write_table(
                builder, ((n, {c: Cell(cell.text) for c, cell in enumerate(row.cells, 1)}) for n, row in rows), path
            )
        elif shape.has_chart:
            _write_chart(builder, shape.chart, path)
        else:  # the other frames hold diagrams and embedded files
            pictures += kind == _PICTURE or shape.element.tag.endswith("}graphicFrame")
    return pictures


def _kind(shape: Any) -> int | None:
    try:
        return int(shape.shape_type) if shape.shape_type is not None else None
    except NotImplementedError:  # a shape of a kind that the library does not know
        return None


def _write_chart(builder: TextBuilder, chart: Any, path: tuple[str, ...]) -> None:
    """The title, and a line a series: ``Sales: Q1: 1001, Q2: 1200``."""
    if chart.has_title and chart.chart_title.has_text_frame:
        _write(builder, chart.chart_title.text_frame.text, path)
    for plot in chart.plots:
        for series in plot.series:
            points = zip(plot.categories, series.values, strict=False)
            said = [f"{category}: {plain(Decimal(repr(value)))}" for category, value in points if value is not None]
            _write(builder, f"{series.name}: {', '.join(said)}", path)


def _write(builder: TextBuilder, text: str, path: tuple[str, ...], *, heading: bool = False) -> None:
    text = text.replace("\v", "\n").strip()
    if text and heading:
        builder.part()
        builder.add_heading(text, 1, path)
    elif text:
        builder.part()
        builder.add(text, path)
