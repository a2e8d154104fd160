"""Index generations in a store that all machines reach, for those that do not share a data folder.

The writer sends a generation up before SQL names it; a reader brings it down when SQL names one that it lacks, and
checks it like any other. What is served is always a local folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from pathlib import Path

from retrieval.common.files import in_words
from retrieval.errors import IndexCorrupt
from retrieval.index.generation import MANIFEST
from retrieval.store.blobs import RemoteBlobs

UNNAMED_GRACE_S = 3600.0


def publish(blobs: RemoteBlobs, folder: Path) -> None:
    """Send a generation up, its manifest last. Error: StoreUnavailable."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    for path in [*files, folder / MANIFEST]:
        blobs.put_file(f"index/{folder.name}/{path.name}", path)


def fetch(blobs: RemoteBlobs, index_folder: Path, name: str) -> None:
    """Bring a generation down unless it is here. Errors: StoreUnavailable; IndexCorrupt where it is nowhere."""
    if (index_folder / name / MANIFEST).is_file():
        return
    aside = index_folder / f"tmp-{secrets.token_hex(4)}"
    with in_words():
        aside.mkdir(parents=True)
    try:
        for blob in blobs.names(f"index/{name}"):
            blobs.get_file(blob, aside / blob.rpartition("/")[2])
        if not (aside / MANIFEST).is_file():
            raise IndexCorrupt(f"generation {name} is neither in {index_folder} nor in the store {blobs.name}")
        with in_words():
            shutil.rmtree(index_folder / name, ignore_errors=True)
            os.rename(aside, index_folder / name)
    except KeyError as error:
        raise IndexCorrupt(f"generation {name} went from the store {blobs.name} while it was fetched") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def tidy(index_folder: Path, named: set[str]) -> None:
    """Remove what this machine fetched and SQL names no more; what was renamed just now may yet be named."""
    for path in index_folder.glob("gen-*"):
        if path.name not in named and time.time() - path.stat().st_mtime > UNNAMED_GRACE_S:
            shutil.rmtree(path, ignore_errors=True)


def forget(blobs: RemoteBlobs, keep: set[str]) -> None:
    """Remove the generations that SQL names no more."""
    for blob in list(blobs.names("index")):
        if blob.split("/")[1] not in keep:
            blobs.remove(blob)
