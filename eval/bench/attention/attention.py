"""The CPU attention kernels against torch and against what memory and arithmetic allow, all timed in turn in one run.

Parts: dense prefill by length; paged decode by length, with the other ways of doing it; draft trees; sparse prefill by
density; page selection in decode; linear layers by rows. Times are the best of many rounds. In bfloat16 every part also
times float32 in the same rounds, and decode int8 pages.
Keys and values are random there: the time of these kernels does not depend on them. With a text, sparse policies also
run on Q, K and V of the embedded reader (`reader_attention`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional
from typer import Option

from eval.bench.attention import reader_attention
from eval.bench.attention.paged_candidates import FlexDecode, NumbaDecode
from eval.bench.attention.reader_attention import CHUNK
from eval.bench.base import Figures, Policies, ThreadedOptions, Threads, bench
from eval.bench.timer import Marks, time_in_turn
from sparse_attn.blocks import BlockIndex, query_blocks
from sparse_attn.kernels import dense, select_kernels
from sparse_attn.kernels.cpu import features
from sparse_attn.kernels.operands import Pages, Rows
from sparse_attn.kv.pool import head_bytes
from sparse_attn.kv.quant import quantize

HEADS, KV_HEADS, DIM, PAGE = 8, 4, 64, 64
GROUP = HEADS // KV_HEADS
SCALE = DIM**-0.5
QUERY_BLOCK = 128
POLICIES = ("auto", "trianglemix", "lserve", "minference", "xattention:means=true", "xattention", "flexprefill")

CPU, FLOAT32 = torch.device("cpu"), torch.float32

Kernel = Callable[[], object]


class Dtype(StrEnum):
    """Of queries, keys and values."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """Time the CPU attention kernels against torch and the machine's limits."""

    threads: Threads = 2
    dtype: Annotated[Dtype, Option(help="Of queries, keys and values; bfloat16 is timed beside float32.")] = (
        Dtype.FLOAT32
    )
    rounds: Annotated[int, Option(min=1, help="Calls of each kernel; the best counts.")] = 40
    text: Annotated[Path | None, Option(help="Text for Q, K and V of the embedded reader.")] = None
    length: Annotated[int, Option(min=CHUNK, help="Tokens of the reader's prompt.")] = 32768
    policies: Policies = POLICIES


@torch.inference_mode()
def run(options: Options) -> Figures:
    """Every part; see the functions of this module for what their rows mean."""
    rounds, dtype = options.rounds, getattr(torch, options.dtype)
    own = dtype == FLOAT32
    figures = {
        "kernel": select_kernels(CPU, dtype).name,
        "family": features.family(),
        "shape": {"heads": HEADS, "kv_heads": KV_HEADS, "dim": DIM, "page": PAGE, "dtype": options.dtype},
        **options.told("threads", "rounds"),
        "prefill": prefill([512, 2048, 8192] if own else [512, 2048, 8192, 16384], rounds, dtype),
        "decode": [(_decode if own else _narrow_decode)(n, rounds) for n in (4096, 16384, 65536)],
        "trees": trees(16384, [8, 32], rounds, dtype),
        "sparse_prefill": sparse_prefill(8192, [0.1, 0.25, 0.5], rounds, dtype),
        "page_selection": page_selection([4096, 8192, 16384, 65536], 4096, rounds, dtype),
    }
    if own:
        figures["linear"] = linear([1, 9, 33, 64, 256], rounds)
    if options.text is not None:
        words = options.text.read_text(encoding="utf-8")
        figures["reader"] = reader_attention.run(words, options.length, options.policies)
    return figures


def best_times(ways: Mapping[str, Kernel], rounds: int) -> dict[str, float]:
    """Seconds of each way in its best round."""
    return {name: times.best for name, times in time_in_turn(ways, rounds).items()}


class Paged:
    """One layer's pages at a time, of several layers, so that no call finds its keys in the cache.

    Args:
        dtype: of the pages; rows for int8 ones are of bfloat16.
    """

    def __init__(self, context: int, layers: int, dtype: torch.dtype = FLOAT32) -> None:
        pages = context // PAGE
        self.context, self.dtype, self.at = context, dtype, 0
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(0))
        self.table = order.int().view(1, -1)
        self.layers = [self._random_pages(pages) for _ in range(layers)]

    def _random_pages(self, count: int) -> Pages:
        k, v = torch.randn(2, count, KV_HEADS, PAGE, DIM)
        if self.dtype != torch.int8:
            return Pages(k.to(self.dtype), v.to(self.dtype), self.table)
        (k, k_scale), (v, v_scale) = quantize(k), quantize(v)
        return Pages(k, v, self.table, k_scale, v_scale)

    def pages(self) -> Pages:
        self.at = (self.at + 1) % len(self.layers)
        return self.layers[self.at]

    def layer(self) -> tuple[Tensor, Tensor]:
        pages = self.pages()
        return pages.k, pages.v

    @property
    def bytes(self) -> int:
        return 2 * self.context * KV_HEADS * head_bytes(DIM, self.dtype)

    def attend(self, rows: int, tree: Tensor | None = None, index: BlockIndex | None = None) -> Kernel:
        """Our kernel over `rows` new rows of this sequence."""
        new = self.rows(rows, tree)
        attention = select_kernels(CPU, new.q.dtype).attention
        return lambda: attention(self.pages(), new, index)

    def rows(self, count: int, tree: Tensor | None = None) -> Rows:
        """Random new rows behind the context."""
        dtype = torch.bfloat16 if self.dtype == torch.int8 else self.dtype
        return Rows.of_sequence(*random_rows(count, dtype), SCALE, self.context, tree_mask=tree)


def random_rows(rows: int, dtype: torch.dtype = FLOAT32) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(rows, heads, DIM).to(dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))
    return q, k, v


def speedup(times: Mapping[str, float], ours: str) -> dict[str, float]:
    """What float32 took in the same rounds, where it was timed too."""
    if "float32" not in times:
        return {}
    return {"float32_ms": 1e3 * times["float32"], "float32_over_ours": times["float32"] / times[ours]}


def random_tree(nodes: int) -> Tensor:
    """bool [nodes, nodes]; node 0 is the root, the parent of each other node is random."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.eye(nodes, dtype=torch.bool)
    for i in range(1, nodes):
        mask[i] |= mask[int(torch.randint(0, i, (1,), generator=generator))]
    return mask


def prefill(lengths: list[int], rounds: int, dtype: torch.dtype = FLOAT32) -> list[dict[str, Any]]:
    """Dense causal attention of a whole prompt, beside torch's."""
    rows, marks = [], Marks(dtype=dtype)
    for n in lengths:
        q, k, v = random_rows(n, dtype)
        query, keys, values = (x.transpose(0, 1)[None] for x in (q, k, v))
        ways: dict[str, Kernel] = {
            **marks.ways(),
            "ours": _whole_prompt(q, k, v),
            "sdpa": partial(
                functional.scaled_dot_product_attention, query, keys, values, is_causal=True, enable_gqa=True
            ),
        }
        if dtype != FLOAT32:
            ways["float32"] = _whole_prompt(q.float(), k.float(), v.float())
        times = best_times(ways, rounds if n <= 2048 else max(rounds // 10, 3))
        limit = 2 * n * n * HEADS * DIM / marks.flops_per_s(times["matmul"])
        rows.append(
            {
                "length": n,
                "ours_ms": 1e3 * times["ours"],
                "sdpa_ms": 1e3 * times["sdpa"],
                "sdpa_over_ours": times["sdpa"] / times["ours"],
                **speedup(times, "ours"),
                "over_limit": times["ours"] / limit,
            }
        )
    return rows


def _whole_prompt(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex | None = None) -> Kernel:
    return partial(select_kernels(CPU, q.dtype).ragged_attention, Rows.of_sequence(q, k, v, SCALE), index)


def _layers(context: int) -> int:
    return max(2, 65536 // context)


def _narrow_decode(context: int, rounds: int) -> dict[str, Any]:
    """One row over a paged context in bfloat16, in int8 and in float32."""
    kinds = (torch.bfloat16, torch.int8, FLOAT32)
    held = {str(dtype).removeprefix("torch."): Paged(context, _layers(context), dtype) for dtype in kinds}
    marks = Marks()
    times = best_times({**marks.ways(), **{name: paged.attend(1) for name, paged in held.items()}}, rounds)
    rate = marks.bytes_per_s(times["read"])
    row: dict[str, Any] = {"context": context, "read_gb_per_s": rate / 1e9}
    for name, paged in held.items():
        row |= {f"{name}_ms": 1e3 * times[name], f"{name}_over_limit": times[name] / (paged.bytes / rate)}
    return row | {f"float32_over_{name}": times["float32"] / times[name] for name in held if name != "float32"}


def _decode(context: int, rounds: int) -> dict[str, Any]:
    """One row over a paged context: ours, and what else could be done."""
    paged = Paged(context, _layers(context))
    rows = paged.rows(1)
    ways: dict[str, Kernel] = {
        "ours": paged.attend(1),
        "torch_gather": lambda: dense.paged_attention(paged.pages(), rows),
        "numba": NumbaDecode(paged.table, paged.context, SCALE).bind(rows.q, paged.layer),
    }
    if flex := FlexDecode.build(HEADS, SCALE):
        ways["flex_attention_contiguous"] = flex.bind(rows.q, paged.layer)
    marks = Marks()
    times = best_times({**marks.ways(), **ways}, rounds)
    limit = paged.bytes / marks.bytes_per_s(times["read"])
    return {
        "context": paged.context,
        "read_gb_per_s": marks.bytes_per_s(times["read"]) / 1e9,
        "limit_ms": 1e3 * limit,
        **{f"{name}_ms": 1e3 * times[name] for name in ways},
        **{f"{name}_over_limit": times[name] / limit for name in ways},
    }


def trees(context: int, sizes: list[int], rounds: int, dtype: torch.dtype = FLOAT32) -> list[dict[str, Any]]:
    """A root and a draft tree below it, in one forward; the limit is the larger of reading and multiplying."""
    rows, marks = [], Marks(dtype=dtype)
    paged = Paged(context, _layers(context), dtype)
    wide = Paged(context, _layers(context)) if dtype != FLOAT32 else None
    for nodes in sizes:
        count = nodes + 1
        ways = {**marks.ways(), "tree": paged.attend(count, random_tree(count))}
        if wide is not None:
            ways["float32"] = wide.attend(count, random_tree(count))
        times = best_times(ways, rounds)
        reading = paged.bytes / marks.bytes_per_s(times["read"])
        multiplying = 4 * count * HEADS * DIM * context / marks.flops_per_s(times["matmul"])
        rows.append(
            {
                "context": context,
                "nodes": nodes,
                "ms": 1e3 * times["tree"],
                **speedup(times, "tree"),
                "reading_ms": 1e3 * reading,
                "multiplying_ms": 1e3 * multiplying,
                "over_limit": times["tree"] / max(reading, multiplying),
            }
        )
    return rows


def sparse_prefill(
    length: int, densities: list[float], rounds: int, dtype: torch.dtype = FLOAT32
) -> list[dict[str, Any]]:
    """A random block index of each density; `of_limit` is dense time × density ÷ time."""
    new = random_rows(length, dtype)
    functions: dict[str, Kernel] = {"dense": _whole_prompt(*new)}
    indices = {}
    for wanted in densities:
        index = random_index(length, wanted)
        indices[f"{wanted}"] = index
        functions[f"{wanted}"] = _whole_prompt(*new, index)
    times = best_times(functions, max(rounds // 10, 3))
    return [
        {
            "length": length,
            "density": index.density(),
            "ms": 1e3 * times[name],
            "dense_ms": 1e3 * times["dense"],
            "of_limit": times["dense"] * index.density() / times[name],
        }
        for name, index in indices.items()
    ]


def random_index(length: int, density: float) -> BlockIndex:
    """Random blocks, the first and the diagonal one always among them."""
    generator = torch.Generator().manual_seed(0)
    bounds, _, last = query_blocks([length], [0], QUERY_BLOCK)
    mask = torch.rand(KV_HEADS, len(bounds) - 1, -(-length // PAGE), generator=generator) < density
    mask[..., 0] = True
    mask[:, torch.arange(len(last)), last // PAGE] = True
    return BlockIndex.from_mask(mask, [length], [0], block_q=QUERY_BLOCK, block_k=PAGE)


def page_selection(lengths: list[int], budget: int, rounds: int, dtype: torch.dtype = FLOAT32) -> list[dict[str, Any]]:
    """One row over the newest and a random choice of pages, `budget` tokens in all, beside all pages.

    As the policies do, a sequence within the budget passes no index.
    """
    rows = []
    for n in lengths:
        paged = Paged(n, _layers(n), dtype)
        pages = n // PAGE
        kept = torch.zeros(KV_HEADS, 1, pages + 1, dtype=torch.bool)
        generator = torch.Generator().manual_seed(0)
        for head in range(KV_HEADS):
            kept[head, 0, torch.randperm(pages, generator=generator)[: budget // PAGE]] = True
        kept[..., -2:] = True
        index = BlockIndex.from_mask(kept, [1], [n], block_q=1, block_k=PAGE) if n > budget else None
        times = best_times({"dense": paged.attend(1), "selected": paged.attend(1, index=index)}, rounds)
        rows.append(
            {
                "context": n,
                "budget": budget,
                "density": index.density() if index is not None else 1.0,
                "dense_ms": 1e3 * times["dense"],
                "selected_ms": 1e3 * times["selected"],
                "speedup": times["dense"] / times["selected"],
            }
        )
    return rows


def linear(counts: list[int], rounds: int) -> list[dict[str, Any]]:
    """The row-invariant product beside the library's, over weights that come from memory."""
    from sparse_attn.kernels.cpu import attention as cpu

    weights, at = [torch.randn(1024, 512) for _ in range(40)], [0]

    def weight() -> Tensor:
        at[0] = (at[0] + 1) % len(weights)
        return weights[at[0]]

    def product(multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Kernel:
        return lambda: multiply(x, weight())

    rows = []
    for count in counts:
        x = torch.randn(count, 512)
        times = best_times({"ours": product(cpu.linear, x), "library": product(functional.linear, x)}, rounds)
        rows.append(
            {
                "rows": count,
                "ours_us": 1e6 * times["ours"],
                "library_us": 1e6 * times["library"],
                "ours_over_library": times["ours"] / times["library"],
            }
        )
    return rows


def _name(options: Options, _: Figures) -> str:
    return "bench_attention" if options.dtype == Dtype.FLOAT32 else "bench_attention_bf16"


command = bench(Options, run, _name)
