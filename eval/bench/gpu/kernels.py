"""Kernels of attention timed on a GPU, each as a fraction of its ceiling; on a CPU at toy sizes, to prove the code.

On a GPU what is timed is captured and replayed: so the time is the kernels', not that of Python's launches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from eval.bench.timer import seconds

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sparse_attn.kernels.operands import Pages, Rows

MOST_BYTES = 60 << 30
CALLS = 8  # in one captured graph, so that starting it does not count


@dataclass(frozen=True)
class Shape:
    """Attention of one layer."""

    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    page: int = 64

    @property
    def scale(self) -> float:
        return self.dim**-0.5


class Bench:
    """The measurements over one shape, device and dtype; on a CPU they run too, which the tests use."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype, repeats: int = 9) -> None:
        self.shape, self.device, self.dtype, self.repeats = shape, device, dtype, repeats
        self.copy_bytes_per_s = self.flops_per_s = math.nan

    def ceilings(self, megabytes: int = 2048, side: int = 8192) -> dict[str, float]:
        """Copy bandwidth (bytes read plus written) and matmul rate; the other figures are fractions of these."""
        import torch

        source = torch.empty(megabytes << 20, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.copy_bytes_per_s = 2 * source.numel() / self.seconds(lambda: target.copy_(source))
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        self.flops_per_s = 2 * side**3 / self.seconds(lambda: a @ b)
        return {
            "copy_terabytes_per_s": self.copy_bytes_per_s / 1e12,
            "matmul_teraflops_per_s": self.flops_per_s / 1e12,
        }

    def decode(self, lengths: list[int], batches: list[int]) -> list[dict[str, Any]]:
        """One row a sequence over paged context, bf16 and int8, against the time to read its K and V once; and one
        long sequence among short ones."""
        rows = []
        uneven = [[length] + [length // 128] * (max(batches) - 1) for length in lengths[-2:] if max(batches) > 1]
        for contexts in [[length] * batch for length in lengths for batch in batches] + uneven:
            if 4 * sum(contexts) * self.shape.kv_heads * self.shape.dim > MOST_BYTES:
                continue
            row = {"length": max(contexts), "batch": len(contexts), "even": len(set(contexts)) == 1}
            pages, new = self.paged(contexts, rows_each=1)
            rows.append(row | self._bandwidth("bf16", contexts, pages, new, 2))
            for name, attend in _other_decode(self.device, self.dtype).items():
                us = self.seconds(partial(attend, pages, new)) * 1e6
                rows[-1] |= {f"{name}_us": us, f"times_{name}": rows[-1]["us"] / us}
            if len(contexts) == 1:
                rows.append(row | self._bandwidth("int8", contexts, in_int8(pages), new, 1 + 2 / self.shape.dim))
        return rows

    def dense_prefill(self, lengths: list[int]) -> list[dict[str, Any]]:
        """Our dense causal attention, and every other that is installed, on the same tensors."""
        rows = []
        for length in lengths:
            q, k, v = self._planted(length)
            flops = 2 * length**2 * self.shape.heads * self.shape.dim
            ours = self.seconds(self._first_chunk(q, k, v))
            row = {"length": length, "ms": ours * 1e3, "fraction_of_matmul": flops / ours / self.flops_per_s}
            for name, attend in _other_attention(q, k, v, self.shape.scale).items():
                other = self.seconds(attend)
                row[f"{name}_ms"], row[f"times_{name}"] = other * 1e3, ours / other
            rows.append(row)
        return rows

    def mixed(self, chunk: int, decodes: int, length: int) -> list[dict[str, Any]]:
        """A prompt's chunk behind a context beside decodes, each over as long a one: apart, as the engine runs them,
        by our kernel and by what is best for chunks, against each alone."""
        from sparse_attn.kernels import select_kernels
        from sparse_attn.kernels.triton.in_pages import in_pages
        from sparse_attn.kernels.whole import attend_whole

        pages, rows = self.paged([length], chunk)
        held, new = self.paged([length] * decodes, 1)
        whole = select_kernels(self.device, self.dtype).whole
        row: dict[str, Any] = {"chunk": chunk, "decodes": decodes, "length": length}
        row["decodes_ms"] = self.seconds(partial(in_pages, held, new)) * 1e3
        row["chunk_ms"] = self.seconds(partial(in_pages, pages, rows)) * 1e3
        row["fraction_of_matmul"] = (
            4 * chunk * (length + chunk / 2) * self.shape.heads * self.shape.dim
            / (row["chunk_ms"] / 1e3) / self.flops_per_s
        )  # fmt: skip
        for name, attend in _other_decode(self.device, self.dtype).items():
            row[f"decodes_{name}_ms"] = self.seconds(partial(attend, held, new)) * 1e3
            row[f"chunk_{name}_ms"] = self.seconds(partial(attend, pages, rows)) * 1e3
        if whole is not None:
            row["chunk_by_whole_ms"] = self.seconds(partial(attend_whole, whole, pages, rows)) * 1e3
        return [row]

    def sparse_prefill(self, lengths: list[int], policy: str = "xattention", chunk: int = 8192) -> list[dict[str, Any]]:
        """The last chunk of a long prompt, sparse against dense: kernel, index and density apart."""
        from service.engine.options import parse_policy
        from sparse_attn.kernels.operands import Pages, Rows
        from sparse_attn.kernels.triton.attention import attention
        from sparse_attn.plan.policy import ModelShape
        from sparse_attn.plan.state import PolicyState
        from sparse_attn.rows import HeadPages, SequenceRows

        s = self.shape
        rows = []
        for length in lengths:
            new = min(chunk, length // 2)
            q, k, v = self._planted(length)
            context = length - new
            k_pages, v_pages = (self._to_pages(x[:context]) for x in (k, v))
            pages = Pages(k_pages, v_pages, self._ints(range(len(k_pages)))[None])
            rows_of = Rows.of_sequence(q[context:], k[context:], v[context:], s.scale, context)
            attend = partial(attention, pages, rows_of)
            shape = ModelShape(1, s.heads, s.kv_heads, s.dim, s.page)
            state = PolicyState(parse_policy(policy), shape, length + 1)
            held = [HeadPages(range(s.kv_heads), k_pages, pages.block_tables[0])]
            sequence = SequenceRows(q[context:], k[context:], s.scale, context, held)
            index = state.plan(sequence)
            dense = self.seconds(attend, by_host=True)
            row = {"length": length, "chunk": new, "policy": policy, "dense_ms": dense * 1e3}
            if index is None:
                rows.append({**row, "density": 1.0, "speedup": 1.0, "note": "gated: dense at this length"})
                continue
            planning = self.seconds(partial(state.plan_prefill, sequence), by_host=True)
            sparse = self.seconds(partial(attend, index), by_host=True)
            rows.append(
                {
                    **row,
                    "density": index.density(),
                    "kernel_ms": sparse * 1e3,
                    "index_ms": planning * 1e3,
                    "index_share": planning / (planning + sparse),
                    "speedup": dense / (planning + sparse),
                    "of_visited_block_limit": dense * index.density() / sparse,
                }
            )
        return rows

    def selected_decode(self, length: int, budget: int) -> list[dict[str, Any]]:
        """Decode that reads ``budget`` tokens of the best pages: scoring, choosing and attention against dense."""
        from sparse_attn.kernels.triton.attention import paged_attention
        from sparse_attn.kernels.triton.page_stats import page_bounds, update_page_stats
        from sparse_attn.kv.page_stats import LOGICAL_PAGE, PageStats
        from sparse_attn.plan.select import best_pages, page_weights

        s = self.shape
        held, new = self.paged([length], rows_each=1)
        q, k, table = new.q, held.k, held.block_tables[:, : length // s.page]
        stats = PageStats(1, len(k), s.kv_heads, s.page, s.dim, logical=min(LOGICAL_PAGE, s.page), device=self.device)
        slots = table[0].long().repeat_interleave(s.page) * s.page
        slots += self._ints(range(s.page)).repeat(len(slots) // s.page)
        update_page_stats(stats.kmin[0], stats.kmax[0], k, slots)
        pages, count = table.shape[1], self._ints([table.shape[1]])
        ends = count.long()

        def choose() -> Tensor:
            bounds = page_bounds(q, stats.kmin[0], stats.kmax[0], table, count)
            return best_pages(page_weights(bounds, s.scale, s.kv_heads, 0, ends), budget // s.page)

        index = _decode_index(choose()[0], length, s.page, self.device)
        dense = self.seconds(partial(paged_attention, held, new))
        choosing = self.seconds(choose, by_host=True)
        reading = self.seconds(partial(paged_attention, held, new, index))
        return [
            {
                "length": length,
                "budget": budget,
                "pages": pages,
                "dense_us": dense * 1e6,
                "choose_us": choosing * 1e6,
                "kernel_us": reading * 1e6,
                "speedup": dense / (choosing + reading),
                "speedup_interval_4": dense / (choosing / 4 + reading),
            }
        ]

    def tree(self, length: int, sizes: list[int]) -> list[dict[str, Any]]:
        """Draft trees over a paged context against one row over it."""
        import torch

        from sparse_attn.kernels.triton.in_pages import in_pages

        rows: list[dict[str, Any]] = []
        for count in (1, *sizes):
            mask = torch.ones(count, count, dtype=torch.bool, device=self.device).tril()
            mask &= torch.rand(count, count, device=self.device) < 0.3
            mask |= torch.eye(count, dtype=torch.bool, device=self.device)
            pages, new = self.paged([length], rows_each=count)
            new.tree_masks = [mask]
            us = self.seconds(partial(in_pages, pages, new)) * 1e6
            rows.append(
                {"length": length, "rows": count, "us": us, "times_one_row": us / (rows[0]["us"] if rows else us)}
            )
        return rows

    def seconds(self, work: Callable[[], Any], *, by_host: bool = False) -> float:
        """Median time of a call after warming up; on a GPU that of its kernels, replayed from a graph, or with
        ``by_host`` that of the call, where the host has work of its own."""
        import torch

        for _ in range(2):
            work()
        if self.device.type != "cuda" or by_host:
            return statistics.median(seconds(work) for _ in range(self.repeats))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                work()
        graph.replay()
        times = []
        for _ in range(self.repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3 / CALLS)
        return statistics.median(times)

    # --- inputs ------------------------------------------------------------------------------------------------------

    def _planted(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """q [n, Hq, D], k, v [n, Hkv, D] whose attention has sinks, a local window, columns and a slash.

        Random q and k would have flat attention, on which every sparse method looks useless or too good.
        """
        import torch
        import torch.nn.functional as F

        s = self.shape
        g = torch.Generator(device=self.device).manual_seed(0)

        def noise(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=g, device=self.device, dtype=torch.float32)

        def spread(x: Tensor, strength: float) -> Tensor:
            return F.normalize(x, dim=-1) * strength * math.sqrt(s.dim) ** 0.5

        topics = spread(noise(length // 256 + 2, 1, s.dim), 3.0).repeat_interleave(256, 0)[:length]
        sink = spread(noise(1, 1, s.dim), 3.0)
        k = noise(length, s.kv_heads, s.dim) * 0.3 + topics
        q = noise(length, s.heads, s.dim) * 0.3 + topics + sink
        k[:4] += sink
        columns = torch.randint(0, length, (max(4, length // 2048),), generator=g, device=self.device)
        k[columns] += sink * 0.9
        q[length // 2 :] += topics[: length - length // 2] * 0.9  # a slash: text that comes back
        return q.to(self.dtype), k.to(self.dtype), noise(length, s.kv_heads, s.dim).to(self.dtype)

    def _to_pages(self, x: Tensor) -> Tensor:
        """[n, Hkv, D] → [pages, Hkv, page, D], in order."""
        return x.unflatten(0, (-1, self.shape.page)).transpose(1, 2).contiguous()

    def paged(self, contexts: list[int], rows_each: int) -> tuple[Pages, Rows]:
        """Shuffled pages of random k, v for every sequence and its new rows, and random queries."""
        import torch

        from sparse_attn.host_values import on_device
        from sparse_attn.kernels.operands import Pages, Rows

        s = self.shape
        each = [-(-(length + rows_each) // s.page) for length in contexts]
        k, v = (
            torch.randn(sum(each), s.kv_heads, s.page, s.dim, device=self.device, dtype=self.dtype) for _ in range(2)
        )
        count = len(contexts) * rows_each
        q, new_k, new_v = (
            torch.randn(count, heads, s.dim, device=self.device, dtype=self.dtype)
            for heads in (s.heads, s.kv_heads, s.kv_heads)
        )
        tables = torch.zeros(len(contexts), max(each), dtype=torch.int32, device=self.device)
        order = torch.randperm(sum(each), device=self.device).int()
        for own, mine in zip(tables, order.split(each), strict=True):
            own[: len(mine)] = mine
        bounds = on_device(range(0, count + 1, rows_each), torch.int32, self.device)
        lengths = on_device(contexts, torch.int32, self.device)
        positions = torch.cat([length + torch.arange(rows_each, device=self.device) for length in contexts])
        return Pages(k, v, tables), Rows(q, new_k, new_v, bounds, lengths, s.scale, positions=positions)

    def _first_chunk(self, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Any]:
        """Our dense attention of a prompt's first rows, whose keys lie in pages."""
        import torch

        from sparse_attn.host_values import on_device
        from sparse_attn.kernels.operands import Pages, Rows
        from sparse_attn.kernels.triton.in_pages import in_pages

        room = -len(q) % self.shape.page
        sides = [self._to_pages(torch.cat([x, x.new_zeros(room, *x.shape[1:])])) for x in (k, v)]
        bounds, context = (on_device(n, torch.int32, self.device) for n in ([0, len(q)], [0]))
        pages = Pages(sides[0], sides[1], self._ints(range(len(sides[0])))[None])
        return partial(in_pages, pages, Rows(q, k, v, bounds, context, self.shape.scale))

    def _ints(self, numbers: Any) -> Tensor:
        import torch

        return torch.tensor(list(numbers), dtype=torch.int32, device=self.device)

    def _bandwidth(self, dtype: str, contexts: list[int], pages: Pages, new: Rows, bytes_each: float) -> dict[str, Any]:
        from sparse_attn.kernels.triton.in_pages import in_pages

        taken = self.seconds(partial(in_pages, pages, new))
        wanted = 2 * sum(contexts) * self.shape.kv_heads * self.shape.dim * bytes_each
        return {"kv": dtype, "us": taken * 1e6, "fraction_of_copy_bandwidth": wanted / taken / self.copy_bytes_per_s}


def in_int8(pages: Pages) -> Pages:
    from sparse_attn.kernels.operands import Pages
    from sparse_attn.kv.quant import quantize

    (k8, k_scale), (v8, v_scale) = quantize(pages.k), quantize(pages.v)
    return Pages(k8, v8, pages.block_tables, k_scale, v_scale)


def _decode_index(pages: Tensor, length: int, page: int, device: Any) -> Any:
    """The chosen pages int32 [Hkv, k] of one row, and the page it is about to write, as a `BlockIndex`."""
    import torch

    from sparse_attn.blocks import PAD, BlockIndex

    mask = torch.zeros(len(pages), 1, length // page + 1, dtype=torch.bool, device=device)
    mask[:, 0].scatter_(-1, pages.long().masked_fill(pages == PAD, length // page), True)
    return BlockIndex.of_runs(mask, [1], length, block_k=page).split()[0]


def _other_decode(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[Pages, Rows], Any]]:
    """Decode over pages by what else is installed, by name."""
    from sparse_attn.errors import UnsupportedModelFeature
    from sparse_attn.kernels import flash3, select_kernels

    try:
        kernels = select_kernels(device, dtype, flash3.NAME)
    except UnsupportedModelFeature:
        return {}
    return {"flash_attn_3": kernels.in_pages} if kernels.in_pages is not None else {}


def _other_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> dict[str, Callable[[], Any]]:
    """Dense causal attention by what else is installed, by name."""
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q_first, k_first, v_first = (x.transpose(0, 1)[None] for x in (q, k, v))

    def by_sdpa(backend: SDPBackend) -> Callable[[], Any]:
        def attend() -> Any:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    q_first, k_first, v_first, is_causal=True, scale=scale, enable_gqa=True
                )

        return attend

    found: dict[str, Callable[[], Any]] = {}
    for name, backend in (("sdpa_cudnn", SDPBackend.CUDNN_ATTENTION), ("sdpa_flash", SDPBackend.FLASH_ATTENTION)):
        attend = by_sdpa(backend)
        try:
            attend()
        except RuntimeError:
            continue  # this build or device does not have it
        found[name] = attend
    try:
        from flash_attn_interface import flash_attn_func  # 3
    except ImportError:
        try:
            from flash_attn import flash_attn_func
        except ImportError:
            return found
    found["flash_attn"] = lambda: flash_attn_func(q[None], k[None], v[None], softmax_scale=scale, causal=True)
    return found
