"""The library that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from service.settings import Settings

if TYPE_CHECKING:
    from retrieval.library import Library
    from retrieval.store.shelf import Shelf


def open_library(settings: Settings) -> Library:
    """Open it; the data folder is made where absent.

    Raises retrieval's StoreUnavailable, UnknownEmbedder or UnknownRanker, which name what is wrong;
    InvalidRequest where search on a GPU is asked for and not possible.
    """
    from retrieval.index import gpu_clone
    from retrieval.library import Library

    gpu_clone.enable(settings.search_device == "cuda")
    return Library.open(
        settings.home,
        settings.database_url or None,
        embedder_of(settings),
        blobs=settings.blobs or None,
        ranker=settings.reranker or None,
    )


def open_shelf(settings: Settings) -> Shelf:
    """The documents alone, to look at what is there before anything slow is loaded. Raises StoreUnavailable."""
    from retrieval.store import shelf

    return shelf.open_shelf(settings.home, settings.database_url or None, blobs=settings.blobs or None)


def embedder_of(settings: Settings) -> str | Path:
    """The embedding model as `Library.open` takes it: a folder where there is one of that name."""
    folder = Path(settings.embedder).expanduser()
    return folder if folder.is_dir() else settings.embedder
