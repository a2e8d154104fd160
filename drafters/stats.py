"""What drafting did for a request, or for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drafters.tree import DraftTree
from drafters.verify import Verdict

TARGET = "target"  # the source of a token that nobody guessed


@dataclass
class SourceCount:
    drafted: int = 0
    accepted: int = 0


@dataclass
class DraftingStats:
    """Counts and seconds; `add` sums requests.

    starting_seconds is what `start` took: an index built, a draft prompt prefilled; drafting_seconds what guessing and
    learning took, draft forwards included; verifying_seconds what choosing tokens, walking trees and moving KV took,
    the target's forward not included. steps counts verified forwards, emitted the tokens they gave (bonus tokens
    included); failures counts drafters that raised and were switched off. by_position counts, for the first guess of
    a step, the second and so on, the steps that had such a guess and those in which one was accepted.
    """

    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0
    starting_seconds: float = 0.0
    drafting_seconds: float = 0.0
    verifying_seconds: float = 0.0
    failures: int = 0
    by_source: defaultdict[str, SourceCount] = field(default_factory=lambda: defaultdict(SourceCount))
    by_position: defaultdict[int, SourceCount] = field(default_factory=lambda: defaultdict(SourceCount))

    @property
    def accepted_length(self) -> float:
        """Tokens a step commits, the bonus token included; 0 before the first step."""
        return self.emitted / self.steps if self.steps else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted of the drafted nodes; 0 where none was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def count(self, tree: DraftTree, verdict: Verdict) -> None:
        """Add one step. A path cut short (stop, token limit) counts as far as it was emitted."""
        accepted = verdict.path[: len(verdict.tokens)]
        self.steps += 1
        self.drafted += len(tree)
        self.accepted += len(accepted)
        self.emitted += len(verdict.tokens)
        for source in tree.sources:
            self.by_source[source].drafted += 1
        for position in range(1, int(tree.depths.max()) + 1):
            self.by_position[position].drafted += 1
            self.by_position[position].accepted += position <= len(accepted)
        for node in accepted:
            self.by_source[tree.sources[node]].accepted += 1

    def add(self, other: DraftingStats) -> None:
        """Add another request's figures."""
        for name in ("steps", "drafted", "accepted", "emitted", "failures"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.starting_seconds += other.starting_seconds
        self.drafting_seconds += other.drafting_seconds
        self.verifying_seconds += other.verifying_seconds
        _add(self.by_source, other.by_source)
        _add(self.by_position, other.by_position)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "steps": self.steps,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "emitted": self.emitted,
            "accepted_length": self.accepted_length,
            "acceptance_rate": self.acceptance_rate,
            "starting_seconds": self.starting_seconds,
            "drafting_seconds": self.drafting_seconds,
            "verifying_seconds": self.verifying_seconds,
            "failures": self.failures,
            "by_source": _shown(self.by_source),
            "by_position": _shown(self.by_position),
        }


def _add(mine: defaultdict[Any, SourceCount], others: Mapping[Any, SourceCount]) -> None:
    for key, count in others.items():
        mine[key].drafted += count.drafted
        mine[key].accepted += count.accepted


def _shown(counts: Mapping[Any, SourceCount]) -> dict[str, dict[str, int]]:
    return {str(key): {"drafted": n.drafted, "accepted": n.accepted} for key, n in sorted(counts.items())}


def token_sources(tree: DraftTree, verdict: Verdict) -> list[str]:
    """Who supplied each emitted token: a source's name, or "target"."""
    names = [tree.sources[node] for node in verdict.path] + [TARGET]
    return names[: len(verdict.tokens)]
