"""What is made of documents beside the library, and goes with them: KV of documents and passages, kNN datastores."""

from __future__ import annotations

import shutil
from pathlib import Path

import structlog

from retrieval.knn.store import documents_of
from retrieval.library import Library
from service.engine.kv import PASSAGES, WARMED
from service.settings import Settings

log = structlog.get_logger(__name__)

KNN_FOLDER = "knn"


def made_of_deleted(library: Library, settings: Settings) -> list[Path]:
    """The files and folders that hold something of a document that is no longer there, of any owner."""
    warmed = settings.warm_folder or settings.home / "kv"
    made_of = {path: {path.name.removesuffix(WARMED)} for path in sorted(warmed.glob(f"*{WARMED}"))}
    made_of |= {path: {path.name.partition(".")[0]} for path in sorted(warmed.glob(f"*{PASSAGES}"))}
    made_of |= {path: documents_of(path) for path in sorted((library.home / KNN_FOLDER).glob("*")) if path.is_dir()}
    there = library.existing({document for documents in made_of.values() for document in documents})
    return [path for path, documents in made_of.items() if documents - there]


def forget_deleted(library: Library, settings: Settings) -> list[str]:
    """Remove the files that hold something of a document that is no longer there, of any owner; returns their names.

    To be called after a delete; what a crash in between leaves is found by the next call.
    """
    gone = made_of_deleted(library, settings)
    for path in gone:
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("what was made of a deleted document stays", file=path.name, cause=str(error))
    return [path.name for path in gone]
