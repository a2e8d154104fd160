"""Some space of the disk that is kept free for deletes: making room takes a little room, which a full disk has not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

BYTES = 4 << 20


class Reserve:
    """A file of nothing, given up while a delete runs on a full disk."""

    def __init__(self, home: Path) -> None:
        self._path = home / "reserve"

    def keep(self) -> None:
        """Make it where it is not there and the disk has room for it."""
        if self._path.exists():
            return
        try:
            with self._path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BYTES)
        except OSError:
            self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Its space is free within the block, and taken again afterwards if it still is."""
        self._path.unlink(missing_ok=True)
        try:
            yield
        finally:
            self.keep()
