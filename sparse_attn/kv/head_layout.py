"""Which KV heads share a page: heads of equal lifetime lie together, so that their pages can be freed apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sparse_attn.errors import PolicyError

Heads = tuple[int, ...]


@dataclass(frozen=True)
class HeadLayout:
    """A partition of the KV heads of every layer into groups.

    A page of the pool holds ``page_size`` tokens of one group's heads, in all layers; a sequence has a page table for
    each group. LServe (arXiv 2502.14866, section 3.1) keeps two such tables: streaming heads free their pages, the
    others do not. Pages of all groups come from the same memory, so a page is as large as the largest group.

    Attributes:
        groups: ``groups[g][layer]``, ascending KV heads; each head of a layer is in exactly one group.

    Raises:
        PolicyError: the groups are no partition.
    """

    groups: tuple[tuple[Heads, ...], ...]

    def __post_init__(self) -> None:
        for layer, own in enumerate(zip(*self.groups, strict=True)):
            heads = sorted(h for group in own for h in group)
            if heads != list(range(len(heads))) or any(list(group) != sorted(group) for group in own):
                raise PolicyError(f"layer {layer}: KV heads {own} are no partition of 0 … {len(heads) - 1}")

    @classmethod
    def whole(cls, num_layers: int, num_kv_heads: int) -> HeadLayout:
        """All heads in one group."""
        return cls(((tuple(range(num_kv_heads)),) * num_layers,))

    @classmethod
    def split(cls, streaming: Sequence[Heads], num_kv_heads: int) -> HeadLayout:
        """The heads that are not ``streaming`` (per layer) and those that are; one group where either has none."""
        rest = tuple(tuple(h for h in range(num_kv_heads) if h not in own) for own in streaming)
        if not any(rest) or not any(streaming):
            return cls.whole(len(streaming), num_kv_heads)
        return cls((rest, tuple(tuple(own) for own in streaming)))

    @property
    def num_groups(self) -> int:
        return len(self.groups)

    @property
    def num_layers(self) -> int:
        return len(self.groups[0])

    @cached_property
    def tiles(self) -> int:
        """Tiles of a page, each ``page_size`` tokens of one head of one layer."""
        return max(sum(map(len, group)) for group in self.groups)

    def first_tile(self, group: int, layer: int) -> int:
        """Where the group's heads of this layer begin among the tiles of a page."""
        return sum(len(heads) for heads in self.groups[group][:layer])

    def name(self) -> str:
        """Tells layouts apart; "" for one group."""
        if self.num_groups == 1:
            return ""
        return "|".join(",".join(map(str, heads)) for heads in self.groups[1])


def query_heads(kv_heads: Sequence[int], group: int) -> list[int]:
    """The query heads that share these KV heads, ``group`` to each."""
    return [h * group + i for h in kv_heads for i in range(group)]
