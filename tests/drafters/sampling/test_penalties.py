"""Penalties: the formulas of OpenAI and transformers, on every path of a tree as on plain text."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from drafters.sampling.penalties import PenalisedText, Penalties
from drafters.tree import EMPTY, DraftTree

V = 12
token_lists = st.lists(st.integers(0, V - 1), max_size=12)
asked = st.builds(
    Penalties,
    bias=st.sampled_from([(), ((3, 2.5), (7, -100.0))]),
    repetition=st.sampled_from([1.0, 1.3, 0.7]),
    frequency=st.sampled_from([0.0, 0.4, -1.0]),
    presence=st.sampled_from([0.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.2]),
)


def by_definition(row: list[float], wanted: Penalties, prompt: list[int], answer: list[int], temperature: float):
    """One row's logits, token by token."""
    changed = list(row)
    for token, value in wanted.bias:
        changed[token] += value
    for token in range(V):
        if token in prompt or token in answer:
            changed[token] *= 1 / wanted.repetition if changed[token] > 0 else wanted.repetition
        changed[token] -= wanted.frequency * answer.count(token)
        changed[token] -= wanted.presence * (token in answer)
    if wanted.min_p:
        share = [math.exp((value - max(changed)) / temperature) for value in changed]
        changed = [value if part >= wanted.min_p else -math.inf for value, part in zip(changed, share, strict=True)]
    return changed


@given(asked, token_lists.filter(bool), token_lists, st.integers(0, 2**16))
def test_every_row_is_changed_by_the_text_of_its_path(wanted, prompt, answer, seed):
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.randint(0, 6, (1,), generator=generator))
    parents = [int(torch.randint(-1, i, (1,), generator=generator)) if i else -1 for i in range(size)]
    tree = DraftTree.of(torch.randint(0, V, (size,), generator=generator).tolist(), parents) if size else EMPTY
    logits = torch.randn(size + 1, V, generator=generator, dtype=torch.float64) * 3
    text = PenalisedText(wanted, prompt, 0.8, V)
    got = text.adjust(logits, prompt + answer, tree)
    for row in range(size + 1):
        path = [int(tree.tokens[node]) for node in tree.path_to(row - 1)]
        expected = by_definition(logits[row].tolist(), wanted, prompt, answer + path, 0.8)
        torch.testing.assert_close(got[row], torch.tensor(expected, dtype=torch.float64))


def test_rows_of_a_tree_have_the_bits_of_plain_decoding():
    """Float32: a path's row is what the grown text's only row would be."""
    wanted = Penalties(repetition=1.17, frequency=0.3, presence=0.1, bias=((2, 0.7),), min_p=0.05)
    prompt, answer = [1, 2, 3, 2], [4, 2]
    tree = DraftTree.chain([2, 5, 5])
    logits = torch.randn(4, V, generator=torch.Generator().manual_seed(0))
    at_once = PenalisedText(wanted, prompt, 1.0, V).adjust(logits, prompt + answer, tree)
    text = PenalisedText(wanted, prompt, 1.0, V)
    for row in range(4):
        tokens = prompt + answer + [2, 5, 5][:row]
        assert torch.equal(text.adjust(logits[row : row + 1], tokens, EMPTY)[0], at_once[row])


def test_the_given_logits_are_left_as_they_are():
    logits = torch.ones(1, V)
    PenalisedText(Penalties(repetition=2.0, bias=((0, 1.0),)), [1], 0.0, V).adjust(logits, [1], EMPTY)
    assert torch.equal(logits, torch.ones(1, V))


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_transformers_agrees(temperature):
    prompt = [1, 4, 4, 7]
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(3)) * 4
    ids = torch.tensor([prompt])
    repeated = PenalisedText(Penalties(repetition=1.4), prompt, temperature, V).adjust(logits, prompt, EMPTY)
    assert torch.equal(repeated, RepetitionPenaltyLogitsProcessor(1.4)(ids, logits))
    kept = PenalisedText(Penalties(min_p=0.1), prompt, temperature, V).adjust(logits, prompt, EMPTY)
    peer = MinPLogitsWarper(0.1)(ids, logits / temperature)
    assert torch.equal(torch.isfinite(kept), torch.isfinite(peer))
    assert not torch.isfinite(kept).all()


def test_min_p_leaves_greedy_choices_alone():
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(1))
    assert torch.equal(PenalisedText(Penalties(min_p=0.9), [1], 0.0, V).adjust(logits, [1], EMPTY), logits)
