"""Where a prompt holds passages whose ids do not depend on what stands beside them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PassageSpans:
    """The passages of a prompt, by the numbers of its tokens.

    Attributes:
        preface: so many first tokens are the same whatever passages follow; a passage that is read alone is read behind
            them.
        passages: ascending, none touches another.

    Raises:
        ValueError: they overlap, or one begins within the preface.
    """

    preface: int
    passages: tuple[range, ...]

    def __post_init__(self) -> None:
        end = self.preface
        for span in self.passages:
            if span.step != 1 or span.start < end or not span:
                raise ValueError(f"passages of a prompt at {self.passages} behind {self.preface} tokens")
            end = span.stop
