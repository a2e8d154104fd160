"""Who owns which page of KV, and which pages hold a prefix that somebody may want again.

The manager holds no tensors. A page is in exactly one of three states:

    free      in ``_free``: content worthless
    owned     reference count > 0: one or more requests read it, at most one writes it
    cached    reference count 0, content kept, evictable, oldest use first

A full page is *published* under its digest: a hash of all tokens up to its end, chained page by page from the salt,
which names everything else that changes KV (model, dtype, policy) and whose the page is. A sequence keeps the digests
(`PageDigests`), so that a page is hashed once. A look-up compares the page's own tokens too.

Where heads of unequal lifetimes have pages of their own (`sparse_attn.kv.head_layout`), ``page_size`` tokens of a
sequence lie in one page of each head group: a `Place`. All groups take their pages from the one pool. A sequence may
drop a page of one group and keep the others; a prefix is found up to a token from which on no row will read a page
that is missing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from typing import Protocol

import numpy as np

GONE = -1
Place = tuple[int, ...]
"""The pages of ``page_size`` tokens of a sequence, one a head group; GONE where the sequence has dropped it."""

Gone = Callable[[int, int], range]
"""(head group, tokens computed) → the places of whose pages of that group no later row reads; all of them full."""


def keep_all(group: int, num_tokens: int) -> range:
    """The `Gone` of a sequence that reads every page to its end."""
    return range(0)


class OutOfPages(Exception):
    """No page is free or evictable; the scheduler preempts or waits."""


class PageTier(Protocol):
    """Where pages go when they are evicted, and come back from: host memory, disk (see ``page_tiers``)."""

    def holds(self, digest: bytes) -> bool: ...

    def load(self, digest: bytes, page: int) -> bool:
        """Fill a page of the pool; False where the content proved unusable."""

    def save(self, digest: bytes, page: int) -> None:
        """Keep the content of a page that is about to be overwritten."""


def salt_of(salt: str, owner: str | None) -> str:
    """The salt of pages that an owner's sequences alone find; None: everybody's."""
    return salt if owner is None else f"{salt}\n{owner}"


@dataclass
class PageDigests:
    """Digests of a sequence's full pages, each of the page's tokens and the digest before; the first is the salt's."""

    salt: str
    page_size: int
    _known: list[bytes] = field(default_factory=list)

    def upto(self, token_ids: Sequence[int], count: int) -> Sequence[bytes]:
        """Those of the first ``count`` pages, and maybe more; only pages that were never asked for are hashed."""
        known, size = self._known, self.page_size
        start = len(known)
        if start < count:
            digest = known[-1] if known else blake2b(self.salt.encode(), digest_size=16).digest()
            tokens = np.array(token_ids[start * size : count * size], dtype="<i8").reshape(-1, size)
            for page in tokens:
                digest = blake2b(digest + page.tobytes(), digest_size=16).digest()
                known.append(digest)
        return known


@dataclass(frozen=True)
class _Published:
    digest: bytes
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class PrefixMatch:
    """The longest cached prefix of a prompt.

    Attributes:
        pages: places that hold it; the caller owns a reference to each page.
        miss_reason: why it ends where it ends; None when all that can be cached was.
        queried: tokens that were looked for.
    """

    pages: list[Place]
    miss_reason: str | None
    queried: int = 0


@dataclass
class _Candidate:
    """One place of a prompt's prefix: what names it, and for each head group the page, if there is one."""

    digest: bytes
    tokens: tuple[int, ...]
    present: list[bool]


class BlockManager:
    """Reference-counted pages with a prefix cache over them."""

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        prefix_cache: bool = True,
        lower: PageTier | None = None,
        num_groups: int = 1,
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.prefix_cache = prefix_cache
        self.lower = lower
        self.num_groups = num_groups
        self._free = list(range(num_pages - 1, -1, -1))
        self._refs = [0] * num_pages
        self._cached: OrderedDict[int, None] = OrderedDict()  # evictable pages, least recently used first
        self._by_digest: dict[bytes, int] = {}
        self._published: dict[int, _Published] = {}
        self._evicted: OrderedDict[bytes, None] = OrderedDict()  # lately evicted, to explain a miss
        self.version = 0  # of what `match` can find: a look-up need not be repeated before it changes
        self.hits = self.queries = self.evictions = self.restored = 0

    @property
    def num_available(self) -> int:
        """Pages that ``allocate`` can give: free ones and evictable ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_owned(self) -> int:
        return self.num_pages - self.num_available

    def pages_for(self, num_tokens: int) -> int:
        """Places that hold this many tokens, each a page of every head group."""
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int) -> list[Place]:
        """Take ``count`` places, evicting cached pages where none is free.

        Raises:
            OutOfPages: fewer are available; nothing was taken.
        """
        wanted = count * self.num_groups
        if wanted > self.num_available:
            raise OutOfPages(f"{wanted} pages wanted, {self.num_available} of {self.num_pages} available")
        return [tuple(self._take() for _ in range(self.num_groups)) for _ in range(count)]

    def release(self, places: Sequence[Place]) -> None:
        """Give up one reference to each page; published ones stay cached, to be evicted from the prefix's tail on."""
        for place in reversed(places):
            for page in place:
                if page != GONE:
                    self._release(page)

    def drop(self, places: list[Place], group: int, which: Iterable[int]) -> None:
        """Give up one group's pages of some of a sequence's places, which are marked; dropping twice is allowed."""
        for i in which:
            place = places[i]
            if place[group] != GONE:
                self._release(place[group])
                places[i] = (*place[:group], GONE, *place[group + 1 :])

    def match(
        self, token_ids: Sequence[int], digests: PageDigests, gone: Gone = keep_all, num_tokens: int | None = None
    ) -> PrefixMatch:
        """The longest published prefix of ``token_ids[:num_tokens - 1]`` in whole pages, referenced for the caller.

        The last token is always computed anew, for its logits. Pages that lie in the lower tier are brought back.
        Pages that ``gone`` names for a sequence of the prefix's length are neither wanted nor taken.
        """
        limit = ((len(token_ids) if num_tokens is None else num_tokens) - 1) // self.page_size
        queried = limit * self.page_size
        if not self.prefix_cache:
            return PrefixMatch([], "prefix cache is off", queried)
        if not limit:
            return PrefixMatch([], f"prompt is shorter than a page of {self.page_size} tokens")
        candidates, reason = self._candidates(token_ids, digests, limit, gone)
        while True:
            length = self._usable(candidates, gone)
            if length < len(candidates):
                reason = f"evicted at token {length * self.page_size}"
            places = self._acquire(candidates[:length], gone)
            if places is not None:
                return PrefixMatch(places, reason, queried)

    def count(self, match: PrefixMatch) -> None:
        """Count a match that a sequence goes on from."""
        self.queries += match.queried
        self.hits += len(match.pages) * self.page_size

    def publish(
        self, token_ids: Sequence[int], num_tokens: int, places: Sequence[Place], first: int, digests: PageDigests
    ) -> int:
        """Make the full pages of the first ``num_tokens`` findable, from number ``first`` on; returns their number.

        Where another request has published the same content meanwhile, this one's page stays private.
        """
        full = num_tokens // self.page_size
        if not self.prefix_cache or full == first:
            return full
        known = digests.upto(token_ids, full)
        for i in range(first, full):
            for group, page in enumerate(places[i]):
                key = _key(known[i], group)
                if page != GONE and key not in self._by_digest:
                    self._register(page, key, self._tokens(token_ids, i))
        return full

    def tier_keys(self, token_ids: Sequence[int], places: Sequence[Place], digests: PageDigests) -> dict[bytes, int]:
        """What a lower tier knows the pages of a sequence's full places by → the page."""
        full = min(len(token_ids) // self.page_size, len(places))
        return {
            _key(digest, group): page
            for digest, place in zip(digests.upto(token_ids, full)[:full], places, strict=False)
            for group, page in enumerate(place)
            if page != GONE
        }

    def check_integrity(self, owners: Iterable[Sequence[Place]]) -> None:
        """Every page is in one state, and the counts are those of the owners' page lists.

        Raises:
            AssertionError: a leak, a double owner, or a digest that points nowhere.
        """
        counts = [0] * self.num_pages
        for places in owners:
            for page in (page for place in places for page in place if page != GONE):
                counts[page] += 1
        assert counts == self._refs, "reference counts differ from the owners' pages"
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        for page in range(self.num_pages):
            states = (page in free) + (page in self._cached) + (counts[page] > 0)
            assert states == 1, f"page {page} is in {states} states"
        assert all(page in self._published for page in self._cached), "a cached page has no digest"
        assert {p: e.digest for p, e in self._published.items()} == {p: d for d, p in self._by_digest.items()}

    def _tokens(self, token_ids: Sequence[int], page: int) -> tuple[int, ...]:
        return tuple(token_ids[page * self.page_size : (page + 1) * self.page_size])

    def _candidates(
        self, token_ids: Sequence[int], digests: PageDigests, limit: int, gone: Gone
    ) -> tuple[list[_Candidate], str | None]:
        """Places up to the first that lacks a page which every sequence reads, and why that one lacks it."""
        lasting = [g for g in range(self.num_groups) if not gone(g, limit * self.page_size)]
        found: list[_Candidate] = []
        for digest in digests.upto(token_ids, limit)[:limit]:
            tokens = self._tokens(token_ids, len(found))
            present = [self._holds(_key(digest, group), tokens) for group in range(self.num_groups)]
            missing = [group for group in lasting if not present[group]]
            if missing:
                return found, self._why_missed(_key(digest, missing[0]), len(found))
            found.append(_Candidate(digest, tokens, present))
        return found, None

    def _usable(self, candidates: Sequence[_Candidate], gone: Gone) -> int:
        """Most places from which a sequence can go on: no page that is missing will be read again."""
        groups = range(self.num_groups)
        missing = [list(accumulate((not c.present[g] for c in candidates), initial=0)) for g in groups]
        for length in range(len(candidates), 0, -1):
            unread = [gone(g, length * self.page_size) for g in groups]
            if all(missing[g][length] == missing[g][unread[g].stop] - missing[g][unread[g].start] for g in groups):
                return length
        return 0

    def _acquire(self, candidates: Sequence[_Candidate], gone: Gone) -> list[Place] | None:
        """Take a reference to each page that will be read, restoring those of the lower tier.

        None where one could not be restored, which is then marked as missing; nothing was taken.
        """
        num_tokens = len(candidates) * self.page_size
        unread = [gone(group, num_tokens) for group in range(self.num_groups)]
        places = [[GONE] * self.num_groups for _ in candidates]
        lower: list[tuple[int, int]] = []
        for i, candidate in enumerate(candidates):
            for group in range(self.num_groups):
                page = self._find(_key(candidate.digest, group), candidate.tokens)
                if i in unread[group]:
                    continue
                if page is None:
                    lower.append((i, group))
                    continue
                self._cached.pop(page, None)
                self._refs[page] += 1
                places[i][group] = page
        for i, group in lower:  # after all others are referenced, so that making room evicts none of them
            page = self._restore(_key(candidates[i].digest, group), candidates[i].tokens)
            if page is None:
                candidates[i].present[group] = False
                self.release([tuple(place) for place in places])
                return None
            places[i][group] = page
        return [tuple(place) for place in places]

    def _take(self) -> int:
        page = self._free.pop() if self._free else self._evict()
        self._refs[page] = 1
        return page

    def _release(self, page: int) -> None:
        self._refs[page] -= 1
        if self._refs[page] > 0:
            return
        if page in self._published:
            self._cached[page] = None
        else:
            self._free.append(page)

    def _holds(self, key: bytes, tokens: tuple[int, ...]) -> bool:
        return self._find(key, tokens) is not None or (self.lower is not None and self.lower.holds(key))

    def _find(self, key: bytes, tokens: tuple[int, ...]) -> int | None:
        page = self._by_digest.get(key)
        if page is None or self._published[page].tokens != tokens:
            return None
        return page

    def _restore(self, key: bytes, tokens: tuple[int, ...]) -> int | None:
        """A page filled from the lower tier and published again, owned by the caller; None where that cannot be."""
        if self.lower is None or not self.lower.holds(key) or key in self._by_digest or not self.num_available:
            return None
        page = self._take()
        if not self.lower.load(key, page):
            self._release(page)
            return None
        self._register(page, key, tokens)
        self.restored += 1
        return page

    def _register(self, page: int, digest: bytes, tokens: tuple[int, ...]) -> None:
        self._by_digest[digest] = page
        self._published[page] = _Published(digest, tokens)
        self._evicted.pop(digest, None)
        self.version += 1

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
        self.version += 1
        return page

    def _why_missed(self, key: bytes, index: int) -> str:
        at = f"at token {index * self.page_size}"
        if key in self._evicted:
            return f"evicted {at}"
        return f"never seen {at}" if index == 0 else f"differs {at}"


def _key(digest: bytes, group: int) -> bytes:
    """Names the page of one head group."""
    return digest + bytes([group]) if group else digest
