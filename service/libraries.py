"""The library that the settings name."""

from __future__ import annotations

from pathlib import Path

from retrieval.library import Library
from service.settings import Settings


def open_library(settings: Settings) -> Library:
    """Open it; the data folder is made where absent.

    Raises retrieval's StoreUnavailable or UnknownEmbedder, which name what is wrong.
    """
    folder = Path(settings.embedder).expanduser()
    embedder = folder if folder.is_dir() else settings.embedder
    return Library.open(settings.home, settings.database_url or None, embedder)
