"""Text that knows, character by character, whose it is: a chat template's own, or somebody's content.

A template may trim a content, split it, repeat it or put it into JSON. `Marked` goes through all of that as a string
and keeps its sources; where an operation does not say which character came from where, the result counts as content
whole. So what a template writes itself can be told from what only looks like it.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

OURS = 0
"""The source of what a template writes itself."""
THEIRS = 1
"""The source of a content whose pieces are not told apart."""


class Marked(str):
    """A string in runs of one source each. Made of a string alone it is somebody's content, `THEIRS`.

    Attributes:
        ends: where each run ends, in characters, ascending; the last is the length. () for an empty text.
        sources: of each run.
    """

    ends: tuple[int, ...]
    sources: tuple[int, ...]

    def __new__(cls, text: object = "", source: int = THEIRS) -> Marked:
        marked = super().__new__(cls, text)
        marked.ends, marked.sources = ((len(marked),), (source,)) if marked else ((), ())
        return marked

    @classmethod
    def joined(cls, parts: Iterable[str]) -> Marked:
        """All parts in a row; a plain string among them is `OURS`."""
        given = [part if isinstance(part, Marked) else cls(part, OURS) for part in parts]
        whole = super().__new__(cls, "".join(given))
        ends: list[int] = []
        sources: list[int] = []
        at = 0
        for part in given:
            for end, source in zip(part.ends, part.sources, strict=True):
                if sources and sources[-1] == source:
                    ends[-1] = at + end
                else:
                    ends.append(at + end)
                    sources.append(source)
            at += len(part)
        whole.ends, whole.sources = tuple(ends), tuple(sources)
        return whole

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """(start, end, source) of each."""
        yield from zip((0, *self.ends)[:-1], self.ends, self.sources, strict=True)

    def cut(self, start: int, end: int) -> Marked:
        """The characters `start:end`, with their sources."""
        part = super().__new__(Marked, str.__getitem__(self, slice(start, end)))
        if not part:
            part.ends, part.sources = (), ()
            return part
        first, last = bisect_right(self.ends, start), bisect_right(self.ends, end - 1)
        part.ends = (*(one - start for one in self.ends[first:last]), end - start)
        part.sources = self.sources[first : last + 1]
        return part

    def __str__(self) -> str:
        return self

    def __getitem__(self, index: SupportsIndex | slice) -> Marked:
        if not isinstance(index, slice):
            at = range(len(self))[index]
            return self.cut(at, at + 1)
        start, stop, step = index.indices(len(self))
        if step == 1:
            return self.cut(start, max(start, stop))
        return Marked.joined(self.cut(at, at + 1) for at in range(start, stop, step))

    def __iter__(self) -> Iterator[str]:
        return (self.cut(at, at + 1) for at in range(len(self)))

    def __add__(self, other: str) -> Marked:
        return Marked.joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> Marked:
        return Marked.joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> Marked:
        return Marked.joined(itertools.repeat(self, max(0, times.__index__())))

    __rmul__ = __mul__

    def strip(self, chars: str | None = None, /) -> Marked:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Marked:
        return self.cut(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> Marked:
        return self.cut(0, len(super().rstrip(chars)))

    def removeprefix(self, prefix: str, /) -> Marked:
        return self.cut(len(self) - len(super().removeprefix(prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> Marked:
        return self.cut(0, len(super().removesuffix(suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._parts(super().split(sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._parts(super().rsplit(sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._parts(super().splitlines(keepends))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        return tuple(self._parts(super().partition(sep)))  # type: ignore[return-value]

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        return tuple(self._parts(super().rpartition(sep)))  # type: ignore[return-value]

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Marked:
        if not old:
            return Marked(str.replace(str.__str__(self), old, new, count), source_in((self, new)))
        parts = self.split(old, count)
        return Marked.joined(one for part in parts for one in (new, part))[len(new) :]

    def join(self, parts: Iterable[str], /) -> Marked:
        return Marked.joined(one for part in parts for one in (self, part))[len(self) :]

    def _parts(self, parts: Sequence[str], gap: int = 0) -> list[str]:
        """The same parts of this text, which follow one another with `gap` characters between, or with white space."""
        found: list[str] = []
        at = 0
        for part in parts:
            start = self.find(part, at)
            found.append(self.cut(start, start + len(part)))
            at = start + len(part) + gap
        return found


def _content_whole(name: str) -> Any:
    plain = getattr(str, name)

    def method(self: Marked, *arguments: Any, **named: Any) -> Marked:
        return Marked(plain(self, *arguments, **named), source_in(self) or source_in(arguments) or THEIRS)

    method.__name__ = name
    return method


for _name in (
    *("__format__", "__mod__", "__rmod__", "capitalize", "casefold", "center", "expandtabs", "format", "format_map"),
    *("ljust", "lower", "rjust", "swapcase", "title", "translate", "upper", "zfill"),
):
    setattr(Marked, _name, _content_whole(_name))


def marked(value: Any, source: int = THEIRS) -> Any:
    """The same value with every string in it, keys too, marked as content; those that are marked stay as they are."""
    if isinstance(value, str):
        return value if isinstance(value, Marked) else Marked(value, source)
    if isinstance(value, Mapping):
        return {marked(key, source): marked(one, source) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [marked(one, source) for one in value]
    return value


def source_in(value: Any) -> int:
    """The source of the first content in a value; `OURS` where there is none."""
    if isinstance(value, Marked):
        return next((source for source in value.sources if source != OURS), OURS)
    if isinstance(value, Mapping):
        value = [one for pair in value.items() for one in pair]
    if isinstance(value, list | tuple):
        return next((source for source in map(source_in, value) if source != OURS), OURS)
    return OURS
