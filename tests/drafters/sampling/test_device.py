"""The choices of a GPU are those of the definition, under Triton's interpreter where there is none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from drafters.sampling import choice as sampling
from drafters.sampling import device as on_device
from drafters.verify import NO_TOKEN
from eval.bench.gpu.launches import counted

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def columns(rows, positions):
    temperature, top_k, top_p, seeds = zip(*rows, strict=True)
    kinds = (np.float64, np.int64, np.float64, np.int64, np.int64)
    values = (temperature, top_k, top_p, seeds, positions)
    return [np.array(column, dtype=kind) for column, kind in zip(values, kinds, strict=True)]


def choose(logits, rows, positions, **options):
    packed = on_device.packed(columns(rows, positions)).to(DEVICE)
    return on_device.choose(logits.to(DEVICE), packed, **options).tolist()


ROW = st.tuples(
    st.sampled_from([0.0, 0.3, 1.0, 1.7]), st.sampled_from([0, 1, 5, 400]), st.sampled_from([1.0, 0.9, 0.2]),
    st.integers(0, 2**62),
)  # fmt: skip


@settings(max_examples=8, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=2), seed=st.integers(0, 1000), vocab=st.sampled_from([7, 300]))
def test_the_choices_are_those_of_the_definition(rows, seed, vocab):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), vocab, generator=g) * 3
    positions = torch.randint(0, 10_000, (len(rows),), generator=g).numpy()
    expected = sampling.choose(logits, *columns(rows, positions)).tolist()
    assert choose(logits, rows, positions) == expected


def test_a_vocabulary_is_cut_into_stretches():
    logits = torch.randn(2, 2500, generator=torch.Generator().manual_seed(7)) * 3
    rows = [(1.2, 0, 1.0, 8), (0.0, 0, 1.0, 9)]
    expected = sampling.choose(logits, *columns(rows, [3, 4])).tolist()
    assert choose(logits, rows, [3, 4], any_cut=False) == expected


def test_half_precision_and_rows_of_something_wider():
    logits = (torch.randn(3, 90, generator=torch.Generator().manual_seed(1)) * 3).bfloat16()[:, :80]
    rows = [(0.0, 0, 1.0, 1), (0.8, 7, 0.9, 2), (1.0, 0, 0.5, 3)]
    expected = sampling.choose(logits.float(), *columns(rows, [4, 5, 6])).tolist()
    assert choose(logits, rows, [4, 5, 6]) == expected


def test_equals_at_the_border_are_kept_from_the_lowest_id():
    logits = torch.zeros(16, 6)
    logits[:, 5] = 1.0
    rows = [(1.0, 3, 1.0, n) for n in range(16)]
    half = [(1.0, 0, 0.6, n) for n in range(16)]  # e / (e + 5) = 0.35, and each of the others 0.13
    for cut in (rows, half):
        assert {1, 5} <= set(choose(logits, cut, range(16))) <= {0, 1, 5}


def test_a_row_without_a_choice_says_so():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    logits[1, 3] = torch.nan
    logits[2] = -torch.inf
    logits[3, 7] = torch.inf
    logits[4, :39] = -torch.inf  # all but one forbidden
    rows = [(0.0, 0, 1.0, 1)] * 2 + [(0.7, 0, 1.0, 1)] * 3
    got = choose(logits, rows, range(5), any_cut=False)
    assert got == [int(logits[0].argmax()), NO_TOKEN, NO_TOKEN, NO_TOKEN, 39]


@pytest.mark.parametrize(("top_k", "top_p", "kernels"), [(0, 1.0, 2), (20, 0.9, 3)])
def test_the_choice_is_few_launches(top_k, top_p, kernels):
    """Noise, temperature, cuts and argmax of all rows, with the copy of what they want: at most eight."""
    logits = torch.randn(3, 70, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    packed = on_device.packed(columns([(0.7, top_k, top_p, 1)] * 3, range(3)))
    with counted() as found:
        on_device.choose(logits, packed.clone().to(DEVICE), any_cut=kernels == 3)
    assert sum(count for name, count in found.items() if name.endswith("_kernel")) == kernels
    assert found.total() <= 8, found
