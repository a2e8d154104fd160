"""The best successors are those of a sort, their probabilities those of a softmax."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drafters.sampling.successors import top_successors


@given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(1, 1500),
    count=st.integers(1, 12),
    sharpness=st.sampled_from([0.0, 1.0, 5.0, 60.0]),
    rounded=st.booleans(),
    apart=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    rows=st.sampled_from([[0], [0, 1, 2], [0, 2]]),
)
def test_the_best_are_those_of_a_sort(seed, vocab, count, sharpness, rounded, apart, dtype, rows):
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed)) * sharpness
    logits = (logits.round() if rounded else logits).to(dtype)
    if apart:  # one in each block of 128
        logits[:, ::128] += 1000
    top = top_successors(logits, rows, count)
    ids = torch.sort(logits.float(), descending=True, stable=True).indices
    assert top.ids.tolist() == ids[rows, :count].tolist()
    expected = torch.log_softmax(logits.double(), -1).gather(1, ids)[rows, :count]
    uncounted = 1e-2 if vocab > 128 else 0.0  # the block of the largest counts whole
    torch.testing.assert_close(torch.from_numpy(top.log_probs).double(), expected, rtol=1e-6, atol=uncounted + 1e-4)


@pytest.mark.parametrize("kept", [1, 3, 300])
def test_hidden_tokens_weigh_nothing(kept):
    logits = torch.full((2, 2000), -torch.inf)
    logits[:, 5 : 5 + kept] = 50.0
    top = top_successors(logits, [0, 1], 8)
    assert top.ids[0, : min(kept, 8)].tolist() == list(range(5, 5 + min(kept, 8)))
    assert top.log_probs[0, 0] == pytest.approx(-torch.log(torch.tensor(float(kept))).item(), abs=1e-5)
