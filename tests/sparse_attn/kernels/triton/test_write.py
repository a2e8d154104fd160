"""Writing into pages: the kernel against the pool's own writing in torch."""

import pytest
import torch

pytest.importorskip("triton")

from sparse_attn.kernels.triton.launch import INTERPRETED
from sparse_attn.kernels.triton.write import write_rows
from sparse_attn.kv.pool import KVPool, KVShape

DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize("dim", [24, 64])
def test_rows_are_put_where_the_pool_puts_them(dtype, dim):
    g = torch.Generator().manual_seed(0)
    expected, got = (KVPool(KVShape(2, 3, dim), 5, 16, dtype) for _ in range(2))
    k, v = (torch.randn(4, 3, 2 * dim, generator=g)[..., :dim].to(torch.float32 if dtype == torch.int8 else dtype)
            for _ in range(2))  # fmt: skip
    slots = torch.tensor([3 * 16 + 15, -1, 4 * 16, 0])
    new = expected.encode(k, v)
    expected.groups[0].write(1, slots, new)
    group, rows = got.groups[0], (new.k, new.v) if new.codes is None else new.codes[:2]
    scales = ()
    if new.codes is not None:
        held = (group.key_scales(1), group.value_scales(1))
        scales = tuple(x.to(DEVICE) for x in (*new.codes[2:], *held))
    pages = [x.to(DEVICE) for x in (group.keys[1], group.values[1])]
    write_rows(*(x.to(DEVICE) for x in rows), *pages, slots.to(DEVICE), scales)
    assert torch.equal(pages[0][:-1].cpu(), expected.groups[0].keys[1][:-1])
    assert torch.equal(pages[1][:-1].cpu(), expected.groups[0].values[1][:-1])
    assert (expected.groups[0].keys[1][:-1] != 0).any()
    if scales:
        assert torch.equal(scales[2][:-1].cpu(), expected.groups[0].key_scales(1)[:-1])
        assert torch.equal(scales[3][:-1].cpu(), expected.groups[0].value_scales(1)[:-1])
