"""What the host knows of small tensors, and what it may not know."""

import pytest
import torch

from sparse_attn.host_values import changing, host_list, on_device, to_device

CPU = torch.device("cpu")


def test_values_are_those_that_the_tensor_was_made_of():
    lengths = on_device([3, 1], torch.int32, CPU)
    assert host_list(lengths) == [3, 1]
    assert to_device(lengths, CPU) is lengths


def test_a_buffer_of_a_captured_graph_is_not_read_from_a_device():
    with pytest.raises(RuntimeError, match="a buffer of a captured graph"):
        host_list(changing(torch.empty(2, dtype=torch.int32, device="meta")))  # as good as a GPU for this
    buffer = changing(torch.tensor([1, 2]))
    assert host_list(buffer) == [1, 2]
    buffer[0] = 5
    assert host_list(buffer) == [5, 2]
