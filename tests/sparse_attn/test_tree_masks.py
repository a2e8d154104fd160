"""The masks of a batch in one tensor."""

import numpy as np
import torch

from sparse_attn.tree_masks import TreeMasks

CPU = torch.device("cpu")


def test_items_are_the_masks_that_were_packed():
    masks = [np.tri(3, dtype=bool), None, np.eye(2, dtype=bool)]
    packed = TreeMasks.pack(masks, CPU)
    assert len(packed) == 3
    assert packed.offsets.tolist() == [0, -1, 9]
    for item, mask in zip(packed, masks, strict=True):
        assert (item is None) if mask is None else torch.equal(item, torch.from_numpy(mask))
    assert torch.equal(packed[2:][0], packed[2])
    assert TreeMasks.pack([None, None], CPU) is None


def test_an_item_follows_the_buffer_that_it_lies_in():
    """What kernels prepare once a batch holds its address."""
    packed = TreeMasks.pack([np.eye(2, dtype=bool)], CPU)
    item = packed[0]
    packed.flat[1] = 1
    assert item.tolist() == [[True, True], [False, True]]
