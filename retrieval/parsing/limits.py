"""How much one file may ask of us."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits on one file; everything over them is refused with an error that names the limit.

    Attributes:
        zip_ratio: expanded ÷ compressed bytes of the archive as a whole, where that is more than `zip_small_bytes`.
        attachments: of one mail that are read.
        parse_seconds: wall clock and CPU for one file (a page of a PDF takes some milliseconds), and for cutting its
            text into chunks.
        cpu_base: seconds of CPU that any file may take; beyond them one for every ``cpu_bytes`` of it.
        ocr_seconds, ocr_memory_bytes: more, once text is recognised in its pictures (a page takes some seconds); pages
            for which no time is left are noted.
    """

    file_bytes: int = 256 * MIB
    text_chars: int = 64_000_000
    pdf_pages: int = 10_000
    zip_entries: int = 10_000
    zip_expanded_bytes: int = 512 * MIB
    zip_ratio: int = 200
    zip_small_bytes: int = 16 * MIB
    attachments: int = 100
    parse_seconds: float = 60.0
    cpu_base: float = 20.0
    cpu_bytes: int = 64 * 1024
    ocr_seconds: float = 300.0
    parse_memory_bytes: int = 512 * MIB
    ocr_memory_bytes: int = 512 * MIB

    def cpu_seconds(self, size: int) -> float:
        """CPU time that a file of so many bytes may take."""
        return min(self.parse_seconds, self.cpu_base + size / self.cpu_bytes)
