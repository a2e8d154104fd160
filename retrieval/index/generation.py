"""An index generation: an immutable folder with everything a search needs, and a hash of every file in it.

Layout of ``index/gen-NNNNNNNN-XXXXXXXX``: ``dense.faiss``, ``sparse.*`` (bm25s' own), ``rows.npz`` (chunk ids and
the document of each), ``documents.json``, the token store (``tokens.npy``, ``suffixes.npy``, ``offsets.npy``) where a
tokenizer was given, and ``manifest.json``, written last.
It is written under a temporary name, synced, read again and compared, renamed, and only then named in SQL.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.analysis.terms import ANALYSIS
from retrieval.common.failpoints import failpoint
from retrieval.common.files import Sink, check_hashes, in_words, sync_folder, sync_written, write_synced
from retrieval.errors import IndexCorrupt
from retrieval.index.dense import DenseIndex, factory_string
from retrieval.index.sparse import SparseIndex
from retrieval.index.token_store import TokenStore, save_array
from retrieval.types import DocumentKey

FORMAT = 3
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class GenerationContent:
    """What goes into a generation. Rows are in rising order of chunk id.

    Attributes:
        ids: int64[n] chunk ids.
        document_of_row: int32[n] index into ``documents``.
        vectors: float32[n, d].
        terms: of each row, and in which of the languages.
        tokens: of the documents in the order of ``documents``.
    """

    seq: int
    embedder: str
    ids: np.ndarray
    document_of_row: np.ndarray
    documents: list[DocumentKey]
    vectors: np.ndarray
    terms: Sequence[Sequence[str]]
    languages: Sequence[str]
    tokens: TokenStore | None = None


@dataclass(frozen=True)
class Manifest:
    """What a generation is, and the hash of every file in it.

    Attributes:
        analysis: of the terms (``retrieval.analysis``).
        files: name → {"sha256", "bytes"}.
    """

    format: int
    seq: int
    chunks: int
    embedder: str
    dense: str
    analysis: str
    tokenizer: str | None
    files: dict[str, dict[str, Any]]


class Generation:
    """A loaded generation."""

    def __init__(
        self,
        number: int,
        manifest: Manifest,
        ids: np.ndarray,
        document_of_row: np.ndarray,
        documents: list[DocumentKey],
    ) -> None:
        self.number = number
        self.manifest = manifest
        self.ids = ids
        self.document_of_row = document_of_row
        self.documents = documents
        self.index_of_document = {key[0]: index for index, key in enumerate(documents)}
        self.dense: DenseIndex
        self.sparse: SparseIndex
        self.tokens: TokenStore | None = None

    @property
    def seq(self) -> int:
        return self.manifest.seq


def write_generation(index_folder: Path, content: GenerationContent) -> tuple[str, str]:
    """Write and check a generation. Returns (name of its folder, sha256 of its manifest); SQL does not know it yet."""
    suffix = secrets.token_hex(4)
    aside = index_folder / f"tmp-{suffix}"
    with in_words():
        aside.mkdir(parents=True)
    try:
        with in_words():
            manifest_hash = _write_files(aside, content)
        failpoint("generation.written")
        check_files(aside, manifest_hash)
        load_generation(aside, 0, manifest_hash, checked=True)
        failpoint("generation.checked")
        name = f"gen-{content.seq:08d}-{suffix}"
        os.rename(aside, index_folder / name)
        sync_folder(index_folder)
        failpoint("generation.renamed")
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return name, manifest_hash


def _write_files(folder: Path, content: GenerationContent) -> str:
    dense = DenseIndex.build(content.ids, content.vectors)
    parts: dict[str, Callable[[Sink], object]] = {
        "dense.faiss": dense.write,
        "rows.npz": lambda sink: _save_arrays(sink, ids=content.ids, document_of_row=content.document_of_row),
        "documents.json": lambda sink: sink(json.dumps(content.documents).encode()),
    }
    for name, array in content.tokens.arrays().items() if content.tokens is not None else ():
        parts[name] = partial(save_array, array=array)
    files: dict[str, dict[str, Any]] = {}
    for name, write in parts.items():
        sha256, size = write_synced(folder / name, write)
        files[name] = {"sha256": sha256, "bytes": size}
        failpoint(f"generation.{name}")
    for path in SparseIndex.build(content.terms, content.languages).save(folder):
        sha256, size = sync_written(path)
        files[path.name] = {"sha256": sha256, "bytes": size}
    failpoint("generation.sparse")
    manifest = Manifest(
        format=FORMAT,
        seq=content.seq,
        chunks=len(content.ids),
        embedder=content.embedder,
        dense=factory_string(len(content.ids)),
        analysis=ANALYSIS,
        tokenizer=content.tokens.tokenizer if content.tokens is not None else None,
        files=files,
    )
    data = json.dumps(asdict(manifest), indent=1).encode()
    manifest_hash, _ = write_synced(folder / MANIFEST, lambda sink: sink(data))
    sync_folder(folder)
    return manifest_hash


def _save_arrays(sink: Any, **arrays: np.ndarray) -> None:
    from io import BytesIO

    buffer = BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    sink(buffer.getvalue())


def check_files(folder: Path, manifest_sha256: str) -> Manifest:
    """Every file present and unaltered. Error: IndexCorrupt, naming the file."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IndexCorrupt(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != manifest_sha256:
        raise IndexCorrupt(f"{path} was altered or cut off (its sha256 differs)")
    manifest = _manifest(path, data)
    if manifest.format != FORMAT:
        raise IndexCorrupt(f"{folder} has format {manifest.format} and this Folio reads {FORMAT}")
    if manifest.analysis != ANALYSIS:
        raise IndexCorrupt(f"{folder} has terms of the analysis {manifest.analysis} and this Folio asks for {ANALYSIS}")
    check_hashes(folder, manifest.files)
    return manifest


def _manifest(path: Path, data: bytes) -> Manifest:
    """Error: IndexCorrupt, also for one of another Folio, which has other fields."""
    try:
        return Manifest(**json.loads(data))
    except (TypeError, ValueError) as error:
        raise IndexCorrupt(f"{path} is not the manifest that this Folio writes: {error}") from error


def load_generation(folder: Path, number: int, manifest_sha256: str, checked: bool = False) -> Generation:
    """Load, after checking every hash. Error: IndexCorrupt."""
    if checked:
        manifest = _manifest(folder / MANIFEST, (folder / MANIFEST).read_bytes())
    else:
        manifest = check_files(folder, manifest_sha256)
    try:
        documents = [
            (document, int(version)) for document, version in json.loads((folder / "documents.json").read_text())
        ]
        with np.load(folder / "rows.npz") as rows:
            generation = Generation(number, manifest, rows["ids"], rows["document_of_row"], documents)
        generation.dense = DenseIndex.read(folder / "dense.faiss")
        generation.sparse = SparseIndex.load(folder)
        if manifest.tokenizer is not None:
            generation.tokens = TokenStore.read(folder, manifest.tokenizer)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise IndexCorrupt(f"{folder} cannot be loaded: {error}") from error
    if not np.array_equal(generation.dense.ids, generation.ids) or len(generation.sparse) != len(generation.ids):
        raise IndexCorrupt(f"{folder} disagrees with itself: its parts hold different chunks")
    return generation


def sweep(index_folder: Path, keep: set[str]) -> list[str]:
    """Remove folders that no row of SQL names: left-overs of a crash, and generations superseded."""
    removed = []
    for path in sorted(index_folder.glob("*")) if index_folder.is_dir() else []:
        if path.name not in keep and path.name.startswith(("tmp-", "gen-")):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed
