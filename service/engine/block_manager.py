"""Who owns which page of KV, and which pages hold a prefix that somebody may want again.

The manager holds no tensors. A page is in exactly one of three states:

    free      in ``_free``: content worthless
    owned     reference count > 0: one or more requests read it, at most one writes it
    cached    reference count 0, content kept under its key, evictable, oldest use first

A full page is *published* under the key (what came before it, its own tokens). "What came before" is the serial number
of the parent's publication, never reused, or the salt for a first page. The dictionary compares the tokens themselves,
so two prefixes can never be taken for one another. The salt names everything that changes KV: model, dtype, policy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Key = tuple[int | str, tuple[int, ...]]


class OutOfPages(Exception):
    """No page is free or evictable; the scheduler preempts or waits."""


@dataclass
class _Published:
    key: Key
    serial: int


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

    def __init__(self, num_pages: int, page_size: int, prefix_cache: bool = True) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.prefix_cache = prefix_cache
        self._free = list(range(num_pages - 1, -1, -1))
        self._refs = [0] * num_pages
        self._cached: OrderedDict[int, None] = OrderedDict()  # evictable pages, least recently used first
        self._by_key: dict[Key, int] = {}
        self._published: dict[int, _Published] = {}
        self._evicted: OrderedDict[Key, None] = OrderedDict()  # keys lately evicted, to explain a miss
        self._serial = 0
        self.hits = self.queries = self.evictions = 0

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
        """Give up one reference to each page; published ones stay cached until evicted, the tail of a prefix first."""
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

        The last token is always computed anew, for its logits.
        """
        size, limit = self.page_size, (len(token_ids) - 1) // self.page_size
        self.queries += limit * size
        if not self.prefix_cache:
            return PrefixMatch([], "prefix cache is off")
        pages: list[int] = []
        parent: int | str = salt
        for i in range(limit):
            key = (parent, tuple(token_ids[i * size : (i + 1) * size]))
            page = self._by_key.get(key)
            if page is None:
                self._take(pages)
                return PrefixMatch(pages, self._why_missed(key, i))
            pages.append(page)
            parent = self._published[page].serial
        self._take(pages)
        return PrefixMatch(pages, None if limit else f"prompt is shorter than a page of {size} tokens")

    def publish(self, token_ids: Sequence[int], pages: Sequence[int], first: int, salt: str) -> int:
        """Make the full pages ``first:`` of a sequence findable; returns how many of its pages are full and settled.

        Where another request has published the same content meanwhile, this one's page stays private and the
        chain goes on from the published one.
        """
        full = len(token_ids) // self.page_size
        if not self.prefix_cache:
            return full
        parent: int | str = salt
        if first:
            parent = self._chain_serial(token_ids, pages, first, salt)
        for i in range(first, full):
            key = (parent, tuple(token_ids[i * self.page_size : (i + 1) * self.page_size]))
            holder = self._by_key.get(key)
            if holder is None:
                self._serial += 1
                self._by_key[key] = holder = pages[i]
                self._published[holder] = _Published(key, self._serial)
                self._evicted.pop(key, None)
            parent = self._published[holder].serial
        return full

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Every page is in one state, and the counts are those of the owners' page lists.

        Raises:
            AssertionError: a leak, a double owner, or a key that points nowhere.
        """
        counts = [0] * self.num_pages
        for pages in owners:
            for page in pages:
                counts[page] += 1
        assert counts == self._refs, "reference counts differ from the owners' pages"
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert not free & set(self._cached), "a page is free and cached"
        for page in range(self.num_pages):
            states = (page in free) + (page in self._cached) + (counts[page] > 0)
            assert states == 1, f"page {page} is in {states} states"
        assert all(page in self._published for page in self._cached), "a cached page has no key"
        assert {p: e.key for p, e in self._published.items()} == {p: k for k, p in self._by_key.items()}

    def _take(self, pages: Sequence[int]) -> None:
        for page in pages:
            self._cached.pop(page, None)
            self._refs[page] += 1
        self.hits += len(pages) * self.page_size

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        entry = self._published.pop(page)
        del self._by_key[entry.key]
        self._evicted[entry.key] = None
        if len(self._evicted) > self.num_pages:
            self._evicted.popitem(last=False)
        self.evictions += 1
        return page

    def _chain_serial(self, token_ids: Sequence[int], pages: Sequence[int], first: int, salt: str) -> int | str:
        """Serial of the publication that the page ``first`` follows."""
        own = self._published.get(pages[first - 1])
        if own is not None:
            return own.serial
        parent: int | str = salt  # its parent's content was published by another request: walk the chain
        for i in range(first):
            key = (parent, tuple(token_ids[i * self.page_size : (i + 1) * self.page_size]))
            holder = self._by_key.get(key)
            if holder is None:  # evicted meanwhile: what follows it cannot be reached, so it gets a chain of its own
                self._serial += 1
                return self._serial
            parent = self._published[holder].serial
        return parent

    def _why_missed(self, key: Key, index: int) -> str:
        at = f"at token {index * self.page_size}"
        if key in self._evicted:
            return f"evicted {at}"
        return f"never seen {at}" if index == 0 else f"differs {at}"
