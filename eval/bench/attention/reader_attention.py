"""Prefill attention of sparse policies on Q, K and V of the embedded reader, chunk by chunk as the engine runs them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.options import parse_policy
from sparse_attn.blocks import BlockIndex
from sparse_attn.kernels import select_kernels
from sparse_attn.kernels.operands import Pages, Rows
from sparse_attn.plan.capture import Captured, capture
from sparse_attn.plan.policy import ModelShape
from sparse_attn.plan.state import PolicyState
from sparse_attn.rows import HeadPages, SequenceRows

CHUNK = 2048
WARM = 4096  # tokens that are run before anything is timed


def run(text: str, length: int, policies: Sequence[str]) -> dict[str, Any]:
    """Every policy over all layers of a prompt of ``length`` tokens, each once, beside dense attention and torch's.

    Returns, a policy: ``index_ms`` and ``kernel_ms``; ``of_limit``, the dense kernel's time × density ÷ kernel_ms;
    ``index_share`` of both; ``speedup`` over dense, index included; ``error``, the relative L2 distance from dense
    outputs, averaged over layers.
    """
    from service.engine.loading.checkpoint import load_model

    loaded = load_model("embedded")
    assert loaded.tokenizer is not None
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    captured = capture(loaded.model, (ids * (length // len(ids) + 1))[:length])
    shape = ModelShape.of_config(loaded.model.config.get_text_config(), fingerprint=loaded.name)
    layers = [_Layer(c, shape.page_size) for c in captured]
    _pass(layers, None, WARM)
    truth, _, dense = _pass(layers, None, length)
    rows = []
    for name in policies:
        policy = parse_policy(name)
        policy.check(shape)
        state = PolicyState(policy, shape, length)
        outputs, index, kernel = _pass(layers, state, length)
        density = state.prefill_stats.density
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(outputs, truth, strict=True)]
        rows.append(
            {
                "policy": name,
                "in_force": state.policy.cache_key(),
                "density": density,
                "index_ms": 1e3 * index,
                "kernel_ms": 1e3 * kernel,
                "of_limit": dense * density / kernel,
                "index_share": index / (index + kernel),
                "speedup": dense / (index + kernel),
                "error": sum(errors) / len(errors),
            }
        )
    return {
        "length": length,
        "layers": len(layers),
        "chunk": CHUNK,
        "runs": 1,
        "dense_ms": 1e3 * dense,
        "sdpa_ms": 1e3 * sum(_sdpa_seconds(c) for c in captured),
        "policies": rows,
    }


class _Layer:
    """One captured layer with all of its keys and values in pages."""

    def __init__(self, captured: Captured, page_size: int) -> None:
        def pages(x: Tensor) -> Tensor:
            padded = F.pad(x, (0, 0, 0, 0, 0, -len(x) % page_size))
            return padded.unflatten(0, (-1, page_size)).transpose(1, 2).contiguous()

        self.captured, self.k_pages = captured, pages(captured.k)
        self.table = torch.arange(len(self.k_pages), dtype=torch.int32)
        self.pages = Pages(self.k_pages, pages(captured.v), self.table[None])

    def rows(self, first: int, end: int) -> SequenceRows:
        c = self.captured
        held = [HeadPages(range(c.k.shape[1]), self.k_pages, self.table)] if first else []
        return SequenceRows(c.q[first:end], c.k[first:end], c.scale, first, held, window=c.window, layer=c.layer)

    def attend(self, first: int, end: int, index: BlockIndex | None) -> Tensor:
        c = self.captured
        rows = Rows.of_sequence(c.q[first:end], c.k[first:end], c.v[first:end], c.scale, first, window=c.window)
        return select_kernels(c.q.device, c.q.dtype).attention(self.pages, rows, index)[0]


def _pass(layers: Sequence[_Layer], state: PolicyState | None, length: int) -> tuple[list[Tensor], float, float]:
    """A prompt in chunks: the outputs of each layer, seconds of planning and seconds of attention."""
    outputs: list[list[Tensor]] = [[] for _ in layers]
    planning = attending = 0.0
    for first in range(0, length, CHUNK):
        end = min(first + CHUNK, length)
        for layer, out in zip(layers, outputs, strict=True):
            began = time.perf_counter()
            index = state.plan(layer.rows(first, end)) if state is not None else None
            planned = time.perf_counter()
            out.append(layer.attend(first, end, index))
            planning += planned - began
            attending += time.perf_counter() - planned
    return [torch.cat(parts) for parts in outputs], planning, attending


def _sdpa_seconds(captured: Captured) -> float:
    q, k, v = (x.transpose(0, 1)[None].contiguous() for x in (captured.q, captured.k, captured.v))
    began = time.perf_counter()
    F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True, scale=captured.scale)
    return time.perf_counter() - began
