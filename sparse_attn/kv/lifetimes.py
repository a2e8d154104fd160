"""How long a sequence wants its pages: head groups of which every head streams give them back while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparse_attn.kv.head_groups import HeadGroups
from sparse_attn.kv.head_layout import HeadLayout

if TYPE_CHECKING:
    from sparse_attn.plan.policy import ModelShape, Policy


@dataclass(frozen=True)
class PageLifetimes:
    """Which pages of which head groups of a pool one sequence gives back while it runs.

    A group's pages can be freed where all of its heads, in every layer, are streaming under the sequence's policy.

    Attributes:
        freeing: the head groups of which it does.
    """

    freeing: frozenset[int]
    heads: HeadGroups
    prompt_len: int
    page_size: int
    block: int

    @classmethod
    def of(cls, layout: HeadLayout, policy: Policy, model: ModelShape, prompt_len: int) -> PageLifetimes | None:
        """None where the policy keeps every page of every group."""
        heads = policy.head_groups(model)
        if heads is None:
            return None
        freeing = frozenset(
            number
            for number, group in enumerate(layout.groups)
            if all(set(own) <= set(streaming) for own, streaming in zip(group, heads.streaming, strict=True))
        )
        return cls(freeing, heads, prompt_len, model.page_size, policy.block) if freeing else None

    def gone(self, group: int, num_tokens: int) -> range:
        """Pages of the group, counted in the sequence, that no row from number ``num_tokens`` on will read."""
        if group not in self.freeing:
            return range(0)
        return self.heads.freeable(num_tokens, self.prompt_len, self.page_size, self.block)

    def most_pages(self, group: int, max_len: int, step: int) -> int:
        """As `HeadGroups.most_pages`, for a group of the layout."""
        if group not in self.freeing:
            return -(-max_len // self.page_size)
        return self.heads.most_pages(max_len, step, self.page_size, self.block)
