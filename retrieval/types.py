"""The plain data that the library takes and gives."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

Mode = Literal["hybrid", "dense", "sparse"]
Order = Literal["id", "name", "newest"]
"""of a listing of documents"""
Phase = Literal["parse", "embed", "store", "index"]
DEFAULT_OWNER = "local"
"""Whose everything is that nobody else is named for."""
DocumentKey = tuple[str, int]
"""(document id, version)"""


@dataclass(frozen=True)
class Document:
    """A document as it is now. ``error`` says why it failed.

    Attributes:
        status: ``ready``, ``partial`` (searched like a ready one, but more than a tenth of it could not be read) or
            ``failed``.
        notes: sentences about what was not read, or read with doubt.
        size: bytes of the file.
        chars: characters (code points) of the stored text.
    """

    id: str
    owner: str
    collection: str
    name: str
    version: int
    sha256: str
    media_type: str
    size: int
    status: str
    pages: int
    chunks: int
    chars: int
    error: str | None
    created_at: dt.datetime
    updated_at: dt.datetime
    notes: list[str] = field(default_factory=list)

    @property
    def readable(self) -> bool:
        """Whether there is text of it."""
        return self.status != "failed"


class Place(NamedTuple):
    """Characters ``start`` to ``end`` (exclusive) of the stored text stand at ``path`` in the file, from the whole to
    the part: ``("Sales", "Zone EUR", "B7")``."""

    start: int
    end: int
    path: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """One page of a document: characters ``start`` to ``end`` (exclusive) of the stored text; numbers from 1."""

    number: int
    start: int
    end: int


@dataclass(frozen=True)
class Box:
    """A rectangle around a part of one line, in PDF points from the lower left corner of the page as it is displayed
    (turned and cropped), page size included."""

    page: int
    left: float
    bottom: float
    right: float
    top: float
    page_width: float
    page_height: float


@dataclass(frozen=True)
class Collection:
    name: str
    owner: str
    documents: int
    created_at: dt.datetime


@dataclass(frozen=True)
class Hit:
    """A chunk that answers a query. ``text`` is the stored text's slice ``start:end``, exactly.

    Attributes:
        sha256: of the document's file.
        place: where in the file it stands, for people ("Sales, B7 to C9", "page 3"); "" for a file without places.
        context: what makes it mean something alone: headings of its section, caption and header of its table.
    """

    chunk_id: int
    document: str
    name: str
    start: int
    end: int
    page: int
    score: float
    text: str
    version: int = 1
    sha256: str = ""
    place: str = ""
    context: str = ""

    def scored(self, score: float) -> Hit:
        """The same chunk as the answer to another query."""
        return replace(self, score=score)


class SearchResult(NamedTuple):
    """Hits by falling score, ties by rising chunk id; ``generation`` is the number of the index used, 0 for none.

    ``note`` says where the search was not made in the mode that was asked for, "" elsewhere.
    """

    hits: list[Hit]
    generation: int
    note: str = ""


@dataclass(frozen=True)
class Progress:
    """How far an ingest is: ``done`` of ``total`` units (pages in parse, chunks in embed) of the file ``name``.

    Attributes:
        eta_s: seconds left in this phase at the present rate; None while unknown.
    """

    name: str
    phase: Phase
    done: int
    total: int
    eta_s: float | None = None


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class IngestResult:
    """What became of one file. ``status``: ready, partial or failed; ``deduplicated``: the content was there already.

    Attributes:
        notes: of the document.
        error_kind: class name of the error, for callers that map kinds to statuses.
    """

    id: str | None
    name: str
    status: str
    pages: int
    chunks: int
    error: str | None
    version: int = 0
    deduplicated: bool = False
    seconds: float = 0.0
    error_kind: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Upload:
    """A file given as bytes, as an upload is. The name is a label, never a path."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Job:
    """A background job. ``status``: queued, running, done, failed or cancelled."""

    id: str
    owner: str
    kind: str
    status: str
    attempts: int
    progress: dict[str, object]
    results: list[IngestResult]
    error: str | None
    cancel_requested: bool
    created_at: dt.datetime
    updated_at: dt.datetime


@dataclass(frozen=True)
class IndexReport:
    """What ``build_index``, ``compact`` or ``rebuild`` did.

    Attributes:
        built: False when the newest generation was up to date already.
    """

    generation: int
    chunks: int
    documents: int
    seconds: float
    built: bool


@dataclass(frozen=True)
class VerifyReport:
    """The state of the index and the store; ``ok`` is true when nothing in ``problems``.

    Attributes:
        live_chunks: chunks that SQL says are live.
        indexed_chunks: chunks of the newest generation.
        tombstones: chunks of the generation that are no longer live.
        pending: live chunks served from the journal, not yet in a generation.
    """

    generation: int
    live_chunks: int
    indexed_chunks: int
    tombstones: int
    pending: int
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def stale(self) -> bool:
        """Searches are right either way; a stale index is only slower."""
        return bool(self.pending or self.tombstones)


@dataclass(frozen=True)
class LibraryStats:
    """Totals of a library, and the state of its index.

    Attributes:
        notes: things worth an operator's attention, such as a generation that was skipped.
    """

    documents: int
    chunks: int
    chars: int
    bytes: int
    generation: int
    indexed_chunks: int
    pending: int
    tombstones: int
    journal_seq: int
    embedder: str
    database: str
    notes: list[str] = field(default_factory=list)
