"""Who owns which page of KV, and which pages hold a prefix that somebody may want again.

The manager holds no tensors. A page is in exactly one of three states:

    free      in ``_free``: content worthless
    owned     reference count > 0: one or more requests read it, at most one writes it
    cached    reference count 0, content kept, evictable, oldest use first

A full page is *published* under its digest: a hash of all tokens up to its end, chained page by page from the salt,
which names everything else that changes KV (model, dtype, policy). A look-up compares the page's own tokens too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import numpy as np


class OutOfPages(Exception):
    """No page is free or evictable; the scheduler preempts or waits."""


class PageTier(Protocol):
    """Where pages go when they are evicted, and come back from: host memory, disk (see ``page_tiers``)."""

    def holds(self, digest: bytes) -> bool: ...

    def load(self, digest: bytes, page: int) -> bool:
        """Fill a page of the pool; False where the content proved unusable."""

    def save(self, digest: bytes, page: int) -> None:
        """Keep the content of a page that is about to be overwritten."""


@dataclass(frozen=True)
class _Published:
    digest: bytes
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class PrefixMatch:
    """The longest cached prefix of a prompt.

    Attributes:
        pages: pages that hold it; the caller owns a reference to each.
        miss_reason: why it ends where it ends; None when all that can be cached was.
    """

    pages: list[int]
    miss_reason: str | None


class BlockManager:
    """Reference-counted pages with a prefix cache over them."""

    def __init__(
        self, num_pages: int, page_size: int, prefix_cache: bool = True, lower: PageTier | None = None
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.prefix_cache = prefix_cache
        self.lower = lower
        self._free = list(range(num_pages - 1, -1, -1))
        self._refs = [0] * num_pages
        self._cached: OrderedDict[int, None] = OrderedDict()  # evictable pages, least recently used first
        self._by_digest: dict[bytes, int] = {}
        self._published: dict[int, _Published] = {}
        self._evicted: OrderedDict[bytes, None] = OrderedDict()  # lately evicted, to explain a miss
        self.hits = self.queries = self.evictions = self.restored = 0

    @property
    def num_available(self) -> int:
        """Pages that ``allocate`` can give: free ones and evictable ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_owned(self) -> int:
        return self.num_pages - self.num_available

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` pages, evicting cached ones where none is free.

        Raises:
            OutOfPages: fewer are available; nothing was taken.
        """
        if count > self.num_available:
            raise OutOfPages(f"{count} pages wanted, {self.num_available} of {self.num_pages} available")
        pages = []
        for _ in range(count):
            page = self._free.pop() if self._free else self._evict()
            self._refs[page] = 1
            pages.append(page)
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Give up one reference to each page; published ones stay cached, to be evicted from the prefix's tail on."""
        for page in reversed(pages):
            self._refs[page] -= 1
            if self._refs[page] > 0:
                continue
            if page in self._published:
                self._cached[page] = None
            else:
                self._free.append(page)

    def match(self, token_ids: Sequence[int], salt: str) -> PrefixMatch:
        """The longest published prefix of ``token_ids[:-1]`` in whole pages, referenced for the caller.

        The last token is always computed anew, for its logits. Pages that lie in the lower tier are brought back.
        """
        limit = (len(token_ids) - 1) // self.page_size
        self.queries += limit * self.page_size
        if not self.prefix_cache:
            return PrefixMatch([], "prefix cache is off")
        pages: list[int] = []
        reason = None if limit else f"prompt is shorter than a page of {self.page_size} tokens"
        for digest, tokens in self._chain(token_ids, salt, limit):
            page = self._find(digest, tokens)
            if page is None:
                page = self._restore(digest, tokens)
            else:
                self._cached.pop(page, None)
                self._refs[page] += 1
            if page is None:
                reason = self._why_missed(digest, len(pages))
                break
            pages.append(page)
        self.hits += len(pages) * self.page_size
        return PrefixMatch(pages, reason)

    def publish(self, token_ids: Sequence[int], pages: Sequence[int], first: int, salt: str) -> int:
        """Make the full pages from number ``first`` on findable; returns how many pages of the sequence are full.

        Where another request has published the same content meanwhile, this one's page stays private.
        """
        full = len(token_ids) // self.page_size
        if not self.prefix_cache or full == first:
            return full
        for i, (digest, tokens) in enumerate(self._chain(token_ids, salt, full)):
            if i >= first and digest not in self._by_digest:
                self._register(pages[i], digest, tokens)
        return full

    def digests(self, token_ids: Sequence[int], salt: str) -> list[bytes]:
        """The digest of every full page of a sequence."""
        return [digest for digest, _ in self._chain(token_ids, salt, len(token_ids) // self.page_size)]

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Every page is in one state, and the counts are those of the owners' page lists.

        Raises:
            AssertionError: a leak, a double owner, or a digest that points nowhere.
        """
        counts = [0] * self.num_pages
        for pages in owners:
            for page in pages:
                counts[page] += 1
        assert counts == self._refs, "reference counts differ from the owners' pages"
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        for page in range(self.num_pages):
            states = (page in free) + (page in self._cached) + (counts[page] > 0)
            assert states == 1, f"page {page} is in {states} states"
        assert all(page in self._published for page in self._cached), "a cached page has no digest"
        assert {p: e.digest for p, e in self._published.items()} == {p: d for d, p in self._by_digest.items()}

    def _chain(self, token_ids: Sequence[int], salt: str, count: int) -> Iterator[tuple[bytes, tuple[int, ...]]]:
        """Digest and tokens of the first ``count`` pages."""
        digest = blake2b(salt.encode(), digest_size=16).digest()
        for i in range(count):
            tokens = tuple(token_ids[i * self.page_size : (i + 1) * self.page_size])
            digest = blake2b(digest + np.array(tokens, dtype="<i8").tobytes(), digest_size=16).digest()
            yield digest, tokens

    def _find(self, digest: bytes, tokens: tuple[int, ...]) -> int | None:
        page = self._by_digest.get(digest)
        if page is None or self._published[page].tokens != tokens:
            return None
        return page

    def _restore(self, digest: bytes, tokens: tuple[int, ...]) -> int | None:
        """A page filled from the lower tier and published again, owned by the caller; None where that cannot be."""
        if self.lower is None or not self.lower.holds(digest) or not self.num_available:
            return None
        (page,) = self.allocate(1)
        if not self.lower.load(digest, page):
            self.release([page])
            return None
        self._register(page, digest, tokens)
        self.restored += 1
        return page

    def _register(self, page: int, digest: bytes, tokens: tuple[int, ...]) -> None:
        self._by_digest[digest] = page
        self._published[page] = _Published(digest, tokens)
        self._evicted.pop(digest, None)

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        digest = self._published.pop(page).digest
        del self._by_digest[digest]
        if self.lower is not None:
            self.lower.save(digest, page)
        self._evicted[digest] = None
        if len(self._evicted) > self.num_pages:
            self._evicted.popitem(last=False)
        self.evictions += 1
        return page

    def _why_missed(self, digest: bytes, index: int) -> str:
        at = f"at token {index * self.page_size}"
        if digest in self._evicted:
            return f"evicted {at}"
        return f"never seen {at}" if index == 0 else f"differs {at}"
