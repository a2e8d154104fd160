"""What is typed into a PDF's form, and notes written on its pages: neither is in the text of the page."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pypdfium2 as pdfium

from retrieval.parsing.pdf.ruler import displayed
from retrieval.parsing.pdf.segments import Box, Segment

_TEXT_TYPES = (pdfium.raw.FPDF_FORMFIELD_COMBOBOX, pdfium.raw.FPDF_FORMFIELD_TEXTFIELD)
_MARKED_TYPES = (pdfium.raw.FPDF_FORMFIELD_CHECKBOX, pdfium.raw.FPDF_FORMFIELD_RADIOBUTTON)
_FIELDS_A_PAGE = 5_000


def form_values(
    document: pdfium.PdfDocument, page: pdfium.PdfPage
) -> list[tuple[Segment, tuple[float, float, float, float]]]:
    """The filled fields of a page: each as a segment, with its rectangle (left, bottom, right, top) on the page."""
    count = min(pdfium.raw.FPDFPage_GetAnnotCount(page), _FIELDS_A_PAGE)
    found: list[tuple[Segment, tuple[float, float, float, float]]] = []
    for said, rectangle in _annotations(document, page, count) if count > 0 else ():
        box = Box._make(displayed(np.array([rectangle]), page.get_rotation())[0].tolist())
        found.append((Segment(0, 0, box, said, value=len(found)), rectangle))
    return found


def _annotations(
    document: pdfium.PdfDocument, page: pdfium.PdfPage, count: int
) -> Iterator[tuple[str, tuple[float, float, float, float]]]:
    for number in range(count):
        annotation = pdfium.raw.FPDFPage_GetAnnot(page, number)
        if not annotation:
            continue
        try:
            said = _said(document, annotation).strip()
            sides = pdfium.raw.FS_RECTF()
            if said and pdfium.raw.FPDFAnnot_GetRect(annotation, sides):
                yield said, (sides.left, min(sides.top, sides.bottom), sides.right, max(sides.top, sides.bottom))
        finally:
            pdfium.raw.FPDFPage_CloseAnnot(annotation)


def _said(document: pdfium.PdfDocument, annotation: ctypes.c_void_p) -> str:
    kind = pdfium.raw.FPDFAnnot_GetSubtype(annotation)
    if kind == pdfium.raw.FPDF_ANNOT_FREETEXT:
        return _string(pdfium.raw.FPDFAnnot_GetStringValue, annotation, b"Contents")
    form = document.formenv
    if kind != pdfium.raw.FPDF_ANNOT_WIDGET or form is None:
        return ""
    field = pdfium.raw.FPDFAnnot_GetFormFieldType(form, annotation)
    if field in _TEXT_TYPES:
        return _string(pdfium.raw.FPDFAnnot_GetFormFieldValue, form, annotation)
    if field in _MARKED_TYPES:
        return "[x]" if pdfium.raw.FPDFAnnot_IsChecked(form, annotation) else "[ ]"
    if field == pdfium.raw.FPDF_FORMFIELD_LISTBOX:
        options = range(pdfium.raw.FPDFAnnot_GetOptionCount(form, annotation))
        chosen = [one for one in options if pdfium.raw.FPDFAnnot_IsOptionSelected(form, annotation, one)]
        return ", ".join(_string(pdfium.raw.FPDFAnnot_GetOptionLabel, form, annotation, one) for one in chosen)
    return ""


def _string(read, *arguments) -> str:  # type: ignore[no-untyped-def]
    """PDFium's way with strings: UTF-16 of a length in bytes that is asked for first."""
    size = read(*arguments, None, 0)
    if size <= 2:
        return ""
    buffer = (pdfium.raw.FPDF_WCHAR * (size // 2))()
    read(*arguments, buffer, size)
    text = bytes(buffer).decode("utf-16-le", "replace").rstrip("\0")
    return text.replace("\r\n", "\n").replace("\r", "\n")
