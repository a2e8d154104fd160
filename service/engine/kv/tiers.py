"""Lower tiers of the prefix cache: host memory for evicted pages, and folders of warmed documents on disk.

A tier keys pages by the block manager's digest, which covers the tokens before and in the page and the salt (model,
dtype, policy), so a page can come back in another process, for any prompt that begins the same way.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import structlog
import torch
from safetensors import SafetensorError, safe_open

from service.engine.kv import WARMED, files
from sparse_attn.kv.pool import KVPool, PageContent

log = structlog.get_logger(__name__)


class HostTier:
    """Evicted pages in host memory, least recently used out first (``block_manager.PageTier``)."""

    def __init__(self, pool: KVPool, max_bytes: int) -> None:
        self._pool = pool
        self._max_bytes = max_bytes
        self._pages: OrderedDict[bytes, PageContent] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def holds(self, digest: bytes) -> bool:
        return digest in self._pages

    def load(self, digest: bytes, page: int) -> bool:
        self._pages.move_to_end(digest)
        self._pool.put_page(page, self._pages[digest])
        return True

    def save(self, digest: bytes, page: int) -> None:
        page_bytes = self._pool.page_bytes + self._pool.stats_bytes
        if page_bytes > self._max_bytes:
            return
        self._pages[digest] = {name: part.cpu() for name, part in self._pool.get_page(page).items()}
        self._pages.move_to_end(digest)
        while len(self._pages) * page_bytes > self._max_bytes:
            self._pages.popitem(last=False)


class WarmTier:
    """Pages of warmed documents in a folder: one safetensors file a document, written aside and renamed.

    A file holds a tensor [n, …] for each part of a page (``KVPool.get_page``) and, in its metadata, the digest of each
    page and the SHA-256 of the tensors' bytes, which is checked once, when the first page of the file is wanted.
    """

    def __init__(self, pool: KVPool, folder: Path) -> None:
        self._pool = pool
        self._folder = folder
        self._where: dict[bytes, tuple[Path, int]] = {}
        self._checked: set[Path] = set()
        for path in sorted(folder.glob(f"*{WARMED}")):
            self._index(path)

    def __len__(self) -> int:
        return len(self._where)

    def holds(self, digest: bytes) -> bool:
        return digest in self._where

    def load(self, digest: bytes, page: int) -> bool:
        path, number = self._where[digest]
        try:
            if path not in self._checked:
                files.check(path)
                self._checked.add(path)
            with safe_open(path, framework="pt") as file:
                content = {name: file.get_slice(name)[number] for name in file.keys()}  # noqa: SIM118
            self._pool.put_page(page, content)
        except (OSError, SafetensorError, RuntimeError) as error:
            log.warning("warmed pages cannot be used; warm the document again", file=path.name, error=str(error))
            self._forget(path)
            return False
        return True

    def save(self, digest: bytes, page: int) -> None:
        """Nothing: pages come here by ``write`` alone."""

    def write(self, name: str, digests: Sequence[bytes], pages: Sequence[int], about: dict[str, str]) -> Path:
        """Keep pages of the pool under a name, all or nothing; returns the file."""
        parts = [self._pool.get_page(page) for page in pages]
        content = {name: torch.stack([part[name] for part in parts]).cpu() for name in parts[0]}
        path = self._folder / f"{name}{WARMED}"
        files.write(path, content, {**about, "digests": json.dumps([d.hex() for d in digests])})
        self._index(path)
        return path

    def _index(self, path: Path) -> None:
        try:
            digests = [bytes.fromhex(text) for text in json.loads(files.read_about(path)["digests"])]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            log.warning("not a file of warmed pages; warm the document again", file=path.name, error=str(error))
            return
        self._checked.discard(path)
        self._where.update({digest: (path, i) for i, digest in enumerate(digests)})

    def _forget(self, path: Path) -> None:
        self._where = {digest: place for digest, place in self._where.items() if place[0] != path}


class Tiers:
    """Several tiers as one, asked in order; evicted pages go to all of them."""

    def __init__(self, tiers: Sequence[HostTier | WarmTier]) -> None:
        self._tiers = tiers

    def holds(self, digest: bytes) -> bool:
        return any(tier.holds(digest) for tier in self._tiers)

    def load(self, digest: bytes, page: int) -> bool:
        return any(tier.load(digest, page) for tier in self._tiers if tier.holds(digest))

    def save(self, digest: bytes, page: int) -> None:
        for tier in self._tiers:
            tier.save(digest, page)
