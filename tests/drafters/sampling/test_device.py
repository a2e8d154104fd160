"""The choices for a GPU are those of the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from drafters.sampling import choice as sampling
from drafters.sampling import device as sampling_device


def columns(rows):
    names = (("temperature", torch.float64), ("top_k", torch.int64), ("top_p", torch.float64), ("seed", torch.int64))
    return [torch.tensor([row[i] for row in rows], dtype=dtype) for i, (_, dtype) in enumerate(names)]


ROW = st.tuples(
    st.sampled_from([0.0, 0.3, 1.0, 1.7]), st.sampled_from([0, 1, 5, 400]), st.sampled_from([1.0, 0.9, 0.2]),
    st.integers(0, 2**40),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=5), seed=st.integers(0, 1000), vocab=st.sampled_from([1, 7, 300, 700]))
def test_the_choices_are_those_of_the_definition(rows, seed, vocab):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), vocab, generator=g, dtype=torch.float64) * 3
    positions = torch.randint(0, 10_000, (len(rows),), generator=g)
    arguments = (logits, *columns(rows), positions)
    assert sampling_device.choose(*arguments).tolist() == sampling.choose(*arguments).tolist()


def test_equals_at_the_border_are_kept_from_the_lowest_id():
    logits = torch.zeros(200, 6)
    logits[:, 5] = 1.0
    rows = [(1.0, 3, 1.0, n) for n in range(200)]
    chosen = sampling_device.choose(logits, *columns(rows), torch.arange(200))
    assert set(chosen.tolist()) == {0, 1, 5}


@pytest.mark.parametrize("any_cut", [True, False])
def test_rows_that_keep_every_token_do_not_need_the_sort(any_cut):
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(130, 50, generator=g)
    rows = [(0.8, 0, 1.0, n) for n in range(130)]
    expected = sampling.choose(logits, *columns(rows), torch.arange(130))
    got = sampling_device.choose(logits, *columns(rows), torch.arange(130), any_cut=any_cut)
    assert torch.equal(got, expected)


class NoWaiting(TorchDispatchMode):
    """Fails on every operation whose result the host must have, which is what a GPU would be waited for."""

    WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2"}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name().split(".")[0] not in self.WAITING, func.name()
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_by_the_host():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    rows = columns([(0.0, 0, 1.0, 1), (0.8, 5, 1.0, 2), (1.0, 0, 0.5, 3), (1.0, 3, 0.5, 4), (1.0, 0, 1.0, 5)])
    with NoWaiting():
        sampling_device.choose(logits, *rows, torch.arange(5))
    with pytest.raises(AssertionError, match="nonzero"), NoWaiting():
        sampling.choose(logits, *rows, torch.arange(5))
