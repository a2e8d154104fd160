"""Text in pictures of pages, recognised by RapidOCR (the extra ``ocr``), whose models are in its package.

Runs in the parser's sandbox alone. Nothing is downloaded: there is no network, and the models need none.
"""

from __future__ import annotations

import ctypes
import resource
import time
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pypdfium2 as pdfium

from retrieval.parsing.pdf.segments import Box, Segment

HOW_TO = "install Folio with the extra “ocr”, remove the document and add it again"
_LONG_SIDE = 2000
"""pixels of a page; letters of ten points are then as high as the model reads best"""
_DETECTED_SIDE = 1280
"""pixels of the picture in which lines are looked for; they are read in the larger one"""
_DOTS = 200 / 72
"""pixels a point at most"""

Rectangle = tuple[float, float, float, float]
"""left, bottom, right, top, in the page's own coordinates"""


def available() -> bool:
    return find_spec("rapidocr") is not None and find_spec("onnxruntime") is not None


class Clock:
    """How long recognition may still take, from when it is first asked."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: float | None = None

    def has_time(self) -> bool:
        if self._until is None:
            self._until = time.monotonic() + self._seconds
        return time.monotonic() < self._until


def recognise(page: pdfium.PdfPage) -> list[tuple[Segment, Rectangle]]:
    """The lines in what a page shows, each as a segment, with its rectangle on the page."""
    for what in (resource.RLIMIT_CPU, resource.RLIMIT_DATA):  # the sandbox leaves room for this alone
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (hard, hard))
    width, height = page.get_size()
    scale = min(_DOTS, _LONG_SIDE / max(width, height))
    image = page.render(scale=scale, rev_byteorder=False).to_numpy()
    pixels = image.shape[1], image.shape[0]
    read = _engine()(np.ascontiguousarray(image[:, :, :3]))
    found: list[tuple[Segment, Rectangle]] = []
    for corners, said in zip(read.boxes if read.txts else (), read.txts or (), strict=True):
        (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        text = " ".join(said.split())
        if not text:
            continue
        box = Box(left / scale, height - bottom / scale, right / scale, height - top / scale)
        one = Segment(0, 0, box, text, value=len(found), recognised=True)
        found.append((one, _on_page(page, pixels, (left, top, right, bottom))))
    return found


@lru_cache(maxsize=1)
def _engine() -> Any:
    """One thread, and no arena of memory: the sandbox bounds both."""
    import cv2
    from rapidocr import RapidOCR

    cv2.setNumThreads(1)
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.max_side_len": _LONG_SIDE,
            "Global.use_cls": False,  # tells lines that are upside down, of which scans have few
            "Det.limit_type": "max",
            "Det.limit_side_len": _DETECTED_SIDE,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def _on_page(page: pdfium.PdfPage, pixels: tuple[int, int], sides: tuple[float, float, float, float]) -> Rectangle:
    """From the picture to the page's own coordinates, which know nothing of its rotation and crop box."""
    corners = []
    for across, down in (sides[:2], sides[2:]):
        x, y = ctypes.c_double(), ctypes.c_double()
        pdfium.raw.FPDF_DeviceToPage(
            page, 0, 0, *pixels, 0, round(across), round(down), ctypes.byref(x), ctypes.byref(y)
        )
        corners.append((x.value, y.value))
    (x1, y1), (x2, y2) = corners
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
