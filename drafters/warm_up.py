"""Compile what drafting compiles before the first request comes."""

from __future__ import annotations

import torch

from drafters.base import RequestState
from drafters.combine.goodput import best_budget
from drafters.machine_profile import MachineProfile
from drafters.options import PromptLookupOptions, RecyclingOptions, SuffixOptions
from drafters.registry import build
from drafters.resources import Resources
from drafters.sampling.choice import choose
from drafters.sampling.successors import top_successors
from drafters.sampling.walk import walk
from drafters.tree import DraftTree, fuse


def warm_up() -> None:
    """Compile what the free drafters compile, so that the first request does not wait for it (seconds after an
    installation, half a second later on, when the compiled code is found on disk)."""
    trees = []
    for options in (PromptLookupOptions(), SuffixOptions(), RecyclingOptions()):
        drafter = build(options, Resources(vocab_size=4))
        state = RequestState("warm-up", [1, 2, 3, 1, 2], 5, documents=[[1, 2, 3]])
        drafter.start(state)
        tree = drafter.propose(state, 4)
        logits = torch.zeros(len(tree) + 1, 4)
        verdict = walk(logits, tree, 1.0, 0, len(state.tokens))
        top = top_successors(logits, verdict.rows, drafter.needs_topk) if drafter.needs_topk else None
        drafter.observe(state, tree, verdict, top)
        trees.append(tree)
    tree = fuse(trees).trim(1).ended_by(frozenset([3]))
    tree.depths, tree.ancestor_mask  # noqa: B018 - both are computed when first read
    DraftTree.chain([1, 2]).ended_by(frozenset([1]))
    profile = MachineProfile()
    profile.record([1], [1], 1.0)
    best_budget(tree.scores, profile.step_times(1, 1, len(tree)))
    choose(torch.zeros(1, 4), 1.0, 0, 1.0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
