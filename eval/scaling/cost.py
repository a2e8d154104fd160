"""Bytes and operations of prefill, decode, verification and retrieval, and the time they take.

The model is an additive roofline: time = step + bytes ÷ bandwidth + linear operations ÷ rate + attention operations ÷
rate. Adding is what a kernel without overlap does; one with perfect overlap takes the maximum of the terms, which is
never less than a quarter of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """A decoder model, as far as its cost goes.

    Attributes:
        weight_bytes: of one weight.
        kv_bytes: of one number of K or V.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    weight_bytes: int = 2
    kv_bytes: int = 2

    @property
    def layer_weights(self) -> int:
        """Weights that multiply every token, of all layers: attention's four projections, the MLP's three."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        """Weights that multiply only tokens whose logits are wanted."""
        return self.hidden * self.vocabulary

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes


LLAMA_8B = Shape("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256)
QWEN_7B = Shape("Qwen2.5-7B", 28, 3584, 28, 4, 128, 18944, 152064)


@dataclass(frozen=True)
class Work:
    """What a stage does: bytes read, multiply-adds counted twice, steps of the engine."""

    bytes: float = 0.0
    linear_flops: float = 0.0
    attention_flops: float = 0.0
    steps: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.bytes + other.bytes,
            self.linear_flops + other.linear_flops,
            self.attention_flops + other.attention_flops,
            self.steps + other.steps,
        )


@dataclass(frozen=True)
class Machine:
    """Rates of one machine; `source` says whether they were fitted, or are ceilings."""

    name: str
    bytes_per_s: float
    linear_flops_per_s: float
    attention_flops_per_s: float
    step_s: float = 0.0
    source: str = field(default="", compare=False)

    def seconds(self, work: Work) -> float:
        """Time of this work, by the additive roofline."""
        return (
            work.bytes / self.bytes_per_s
            + work.linear_flops / self.linear_flops_per_s
            + work.attention_flops / self.attention_flops_per_s
            + work.steps * self.step_s
        )


H200 = Machine("H200", 4.3e12, 790e12, 790e12, source="measured ceilings of copy and bf16 matmul; no kernel of ours")


def prefill(shape: Shape, tokens: int, cached: int = 0, density: float = 1.0, chunk: int = 2048) -> Work:
    """Read `tokens` of which the first `cached` have their KV; `density`: visited ÷ causal blocks.

    Weights are read once a chunk, and the context's KV once a chunk, by every later one.
    """
    new = tokens - cached
    chunks = -(-new // chunk)
    pairs = new * (cached + tokens + 1) / 2 * density
    context = sum(cached + i * chunk for i in range(chunks))
    return Work(
        bytes=chunks * shape.layer_weights * shape.weight_bytes + context * density * shape.kv_bytes_per_token,
        linear_flops=2 * new * shape.layer_weights + 2 * shape.head_weights,
        attention_flops=4 * shape.layers * shape.heads * shape.head_dim * pairs,
        steps=chunks,
    )


def decode(shape: Shape, context: int, batch: int = 1, nodes: int = 1, visited: int | None = None) -> Work:
    """One step: `batch` sequences of `context` tokens, each with a tree of `nodes` rows to verify.

    Plain decoding is verification of one node. Weights are read once for all rows, KV once for a sequence's rows;
    `visited`: tokens of context that page selection reads, by default all.
    """
    rows = batch * nodes
    seen = context if visited is None else min(visited, context)
    weights = shape.layer_weights + shape.head_weights
    return Work(
        bytes=weights * shape.weight_bytes + batch * seen * shape.kv_bytes_per_token,
        linear_flops=2 * rows * weights,
        attention_flops=4 * shape.layers * shape.heads * shape.head_dim * rows * seen,
        steps=1,
    )


def retrieval(chunks: int, width: int = 384, together: int = 1) -> Work:
    """Dense search of one query among `together` that share a scan of all vectors (float32)."""
    return Work(bytes=chunks * width * 4 / together, linear_flops=2 * chunks * width)
