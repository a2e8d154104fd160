"""What `batch_invariant` costs on a GPU, and whether a row's bits are there what they are alone.

The interpreter proves the order of the kernels' sums; that a tensor core adds the numbers of a row without a look at
the others is for the device to show.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.bench.gpu.kernels import Bench

WEIGHTS = {"q_proj": (4096, 4096), "gate_proj": (14336, 4096), "down_proj": (4096, 14336), "lm_head": (128256, 4096)}
"""Of Llama-3.1-8B: columns and depth."""


def products(bench: Bench, rows: list[int], scale: int = 1) -> list[dict[str, Any]]:
    """The product of every kind of layer beside the library's, and its first rows beside the same of fewer rows."""
    import torch

    from sparse_attn.kernels.triton.linear import linear

    found = []
    for name, (columns, depth) in WEIGHTS.items():
        weight = torch.randn(columns // scale, depth // scale, device=bench.device, dtype=bench.dtype) / depth**0.5
        every = torch.randn(max(rows), depth // scale, device=bench.device, dtype=bench.dtype)
        most = linear(every, weight)
        for count in rows:
            x = every[:count]
            ours = bench.seconds(partial(linear, x, weight))
            library = bench.seconds(partial(torch.nn.functional.linear, x, weight))
            found.append(
                {
                    "layer": name,
                    "rows": count,
                    "us": ours * 1e6,
                    "times_library": ours / library,
                    "fraction_of_matmul": 2 * count * weight.numel() / ours / bench.flops_per_s,
                    "fraction_of_copy_bandwidth": weight.nbytes / ours / bench.copy_bytes_per_s,
                    "same_bits": torch.equal(linear(x, weight), most[:count]),
                }
            )
    return found


def attention(bench: Bench, contexts: list[int], chunk: int) -> list[dict[str, Any]]:
    """Decode and a prompt's chunk beside our other kernel, and the chunk's last row beside that row alone."""
    import torch

    from sparse_attn.host_values import on_device
    from sparse_attn.kernels.operands import Rows
    from sparse_attn.kernels.triton import in_pages as by_load
    from sparse_attn.kernels.triton import invariant

    found = []
    for context in contexts:
        for count in (1, chunk):
            pages, rows = bench.paged([context], count)
            ours = bench.seconds(partial(invariant.in_pages, pages, rows))
            row = {"context": context, "rows": count, "us": ours * 1e6}
            row["times_by_load"] = ours / bench.seconds(partial(by_load.in_pages, pages, rows))
            last = context + count - 1
            bounds, lengths = (on_device(n, torch.int32, bench.device) for n in ([0, 1], [last]))
            alone = Rows(rows.q[-1:], rows.k[-1:], rows.v[-1:], bounds, lengths, rows.scale)
            alone.positions = rows.positions[-1:] if rows.positions is not None else None
            together = invariant.in_pages(pages, rows)[-1]
            row["same_bits"] = torch.equal(invariant.in_pages(pages, alone)[0], together)
            found.append(row)
    return found
