"""What each head of a model does, found on captured Q, K and V.

* `search_patterns`: MInference's kernel-aware search (arXiv 2407.02490, section 3.3): candidates of equal cost, counted
  in visited blocks of the kernel; a head takes the one whose output differs least from dense attention.
* `streaming_error`: how much a KV head's output changes when it sees only sinks and a window.
* `area_scores`: without any text's content, from the mean query and key under RoPE (as NVIDIA's kvpress does).
* `train_gates`: DuoAttention's gates (arXiv 2410.10819, section 2.2), by training.

The last three say per KV head how much it needs the whole context, from 0 (streaming) to 1 (retrieval).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from sparse_attn.plan.capture import Captured
from sparse_attn.plan.grid import Grid
from sparse_attn.plan.patterns import AShape, BlockTopK, Pattern, VerticalSlash
from sparse_attn.rows import SequenceRows

logger = logging.getLogger(__name__)

SAMPLED_BLOCKS = 8  # query blocks of a text on which outputs are compared
SCALES = (0.35, 0.5, 0.62, 0.75, 0.87, 1.0, 1.15, 1.35, 1.6, 2.0, 2.8)  # of a candidate's size, until costs agree
FILLER_TOKENS = 50  # between two records of a made text
GATE_NAME = "folio_gate"


@dataclass(frozen=True)
class HeadChoice:
    """One query head's best pattern at the given cost.

    Attributes:
        error: relative L2 distance of its output from dense attention on the sampled rows.
        recall: share of dense attention's weight on the blocks it visits.
        density: visited ÷ causal blocks on the sampled rows.
        errors: error of the best variant of each kind of pattern, by class name.
    """

    pattern: Pattern
    error: float
    recall: float
    density: float
    errors: dict[str, float]


def candidates(budget: int, block: int) -> list[Pattern]:
    """Patterns that visit about ``budget`` keys a row: the shapes of MInference's search space."""
    sink = min(max(block, budget // 8), 1024)
    shares = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
    slashes = [VerticalSlash(round(budget * s), round(budget * (1 - s))) for s in shares]
    return [AShape(sink, budget - sink), *slashes, BlockTopK(max(budget // block, 3))]


def search_patterns(captured: Captured, budget: int, block: int = 64) -> list[HeadChoice]:
    """The best pattern of every query head of one layer at a cost of ``budget`` keys a row.

    A candidate is scaled head by head until it visits as many blocks as the budget allows, and no more.
    """
    rows = SequenceRows(captured.q, captured.k, captured.scale)
    grid = Grid.of(rows, block, block)
    sampled = _sampled_blocks(grid)
    truth = _DenseRows(captured, grid, sampled)
    causal = grid.causal[sampled].sum(-1)
    allowed = float(causal.clamp(max=-(-budget // block)).sum()) * 1.02
    num_heads = captured.q.shape[1]
    weights = {kind: kind.weigh(rows, grid, range(num_heads)) for kind in (VerticalSlash, BlockTopK)}
    tried = [
        _within_cost(candidate, weights, grid, num_heads, sampled, allowed, truth)
        for candidate in candidates(budget, block)
    ]
    choices = []
    for per_head in zip(*tried, strict=True):
        best = min(per_head, key=lambda choice: choice.error)
        errors: dict[str, float] = {}
        for choice in per_head:
            kind = type(choice.pattern).__name__
            errors[kind] = min(errors.get(kind, float("inf")), choice.error)
        choices.append(replace(best, errors=errors))
    return choices


def streaming_error(captured: Captured, sink: int = 128, local: int = 256) -> list[float]:
    """Per KV head, how far its output moves when it sees ``sink`` + ``local`` keys only: 0 … 1 (clipped)."""
    group = captured.q.shape[1] // captured.k.shape[1]
    rows = SequenceRows(captured.q, captured.k, captured.scale)
    grid = Grid.of(rows, 32, 32)
    sampled = _sampled_blocks(grid)
    visited = grid.keep(sink, local)[sampled].expand(captured.q.shape[1], -1, -1)
    error, _ = _DenseRows(captured, grid, sampled).compare(visited)
    return error.unflatten(0, (-1, group)).mean(1).clamp(0, 1).tolist()


def area_scores(captured: Captured, cos: Tensor, sin: Tensor) -> list[float]:
    """Per KV head, the area under the cumulative attention of the mean query over the mean key, by distance.

    The mean is taken before RoPE (undone by ``cos``, ``sin`` [n, D] of the model's rotary embedding, halves layout)
    and rotated to every position again, so what remains is the head's own taste in distances: near 0 where the
    last keys get all attention, 0.5 where it is even.
    """
    scaling = cos[0].square() + sin[0].square()  # attention scaling of yarn and longrope, squared; 1 without
    mean_q, mean_k = (
        ((x * cos[:, None] - _rotate_half(x) * sin[:, None]) / scaling).mean(0) for x in (captured.q, captured.k)
    )
    last_q = mean_q * cos[-1] + _rotate_half(mean_q) * sin[-1]  # [Hq, D]
    keys = mean_k * cos[:, None] + _rotate_half(mean_k) * sin[:, None]  # [n, Hkv, D]
    group = captured.q.shape[1] // captured.k.shape[1]
    scores = torch.einsum("hgd,nhd->hgn", last_q.unflatten(0, (-1, group)), keys) * captured.scale
    return scores.float().softmax(-1).cumsum(-1).mean(-1).mean(-1).tolist()


def train_gates(
    model: Any,
    texts: Iterable[Sequence[int]],
    *,
    sink: int = 128,
    local: int = 256,
    steps: int = 200,
    lr: float = 0.02,
    sparsity: float = 0.05,
    answer_tokens: int = 32,
    progress: Callable[[int, float], None] | None = None,
) -> list[list[float]]:
    """DuoAttention's alpha per layer and KV head: each head mixes alpha of dense and 1 - alpha of streaming attention.

    The model is frozen; the gates learn to keep its last hidden states on the last ``answer_tokens`` of each text
    (L2) while ``sparsity`` * |alpha| pulls them down. Texts should need recall over a distance: see `retrieval_text`.

    Returns:
        alpha in 0 … 1, [layers][KV heads].
    """
    config = model.config.get_text_config()
    num_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    gates = nn.Parameter(torch.ones(config.num_hidden_layers, num_kv_heads, device=model.device))
    AttentionInterface.register(GATE_NAME, _gated_attention)
    before, frozen = model.config._attn_implementation, [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    model.set_attn_implementation(GATE_NAME)
    optimiser = torch.optim.Adam([gates], lr=lr)
    texts = iter(texts)
    try:
        for step in range(steps):
            ids = torch.as_tensor(next(texts), device=model.device)[None]
            run = {"input_ids": ids, "use_cache": False, "sink": sink, "local": local}
            positions = torch.arange(ids.shape[1], device=model.device)[None]
            with torch.no_grad():
                dense = model.base_model(**run, position_ids=positions, gates=None).last_hidden_state
            gated = model.base_model(**run, position_ids=positions, gates=gates).last_hidden_state
            loss = (gated - dense)[:, -answer_tokens:].square().sum(-1).mean() / dense.square().sum(-1).mean()
            loss = loss + sparsity * gates.abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                gates.clamp_(0, 1)
            if progress is not None:
                progress(step, float(loss.detach()))
    finally:
        model.set_attn_implementation(before)
        for parameter, wanted in zip(model.parameters(), frozen, strict=True):
            parameter.requires_grad_(wanted)
    return gates.detach().cpu().tolist()


def retrieval_text(
    encode: Callable[[str], list[int]], length: int, seed: int = 0, filler: str | None = None
) -> list[int]:
    """Token ids of a made text of about ``length`` tokens that asks for a number it mentioned far back.

    Records of words and numbers (or ``filler`` text between a few of them), then one of the records again, so that
    the end can only be known from a distance.
    """
    g = torch.Generator().manual_seed(seed)

    def number(digits: int) -> str:
        return "".join(str(int(torch.randint(0, 10, (), generator=g))) for _ in range(digits))

    def question(record: str) -> list[int]:
        return encode(f"What is the number of box {record.split()[4]}? {record.strip()}")

    background = encode(filler) if filler else []
    ids: list[int] = []
    told: list[str] = []
    while True:
        record = f"The number of box {number(4)} is {number(6)}. "
        at = len(told) * FILLER_TOKENS % max(1, len(background) - FILLER_TOKENS)
        piece = encode(record) + background[at : at + FILLER_TOKENS]
        if told and len(ids) + len(piece) + len(question(record)) > length:
            break
        ids += piece
        told.append(record)
    asked = told[int(torch.randint(0, (len(told) + 1) // 2, (), generator=g))]
    return ids + question(asked)


class _DenseRows:
    """Dense attention of some query blocks, to hold sparse ones against."""

    def __init__(self, captured: Captured, grid: Grid, sampled: Tensor) -> None:
        n, num_heads = captured.q.shape[:2]
        group = num_heads // captured.k.shape[1]
        rows = (grid.start[sampled][:, None] + torch.arange(grid.block_q, device=captured.q.device)).flatten()
        self.in_text = rows < n
        rows = rows.clamp(max=n - 1)
        q = captured.q[rows].float().unflatten(1, (-1, group))
        scores = torch.einsum("rhgd,nhd->hgrn", q, captured.k.float()).flatten(0, 1) * captured.scale
        keys = torch.arange(n, device=rows.device)
        future = keys > rows[:, None]
        if captured.window:
            future |= keys <= rows[:, None] - captured.window
        self.weights = scores.masked_fill(future, -torch.inf).softmax(-1)  # [Hq, rows, n]
        self.values = captured.v.float().transpose(0, 1).repeat_interleave(group, 0)
        self.out = self.weights @ self.values
        self.block_q, self.block_k = grid.block_q, grid.block_k

    def compare(self, visited: Tensor) -> tuple[Tensor, Tensor]:
        """visited bool [Hq, sampled, K] → relative error of the output and share of weight kept, each [Hq]."""
        keys = visited.repeat_interleave(self.block_k, -1)[..., : self.weights.shape[-1]]
        kept = self.weights * keys.repeat_interleave(self.block_q, 1)
        mass = kept.sum(-1)
        out = (kept @ self.values) / mass.clamp(min=1e-20)[..., None]
        distance = (out - self.out)[:, self.in_text].norm(dim=(1, 2))
        error = distance / self.out[:, self.in_text].norm(dim=(1, 2)).clamp(min=1e-20)
        return error, mass[:, self.in_text].mean(1)


def _sampled_blocks(grid: Grid) -> Tensor:
    """Query blocks spread over the second half of the text, where patterns differ from dense."""
    last = grid.num_query_blocks - 1
    return torch.linspace(last / 2, last, SAMPLED_BLOCKS, device=grid.device).round().long().unique()


def _within_cost(
    pattern: Pattern, weights: Any, grid: Grid, num_heads: int, sampled: Tensor, allowed: float, truth: _DenseRows
) -> list[HeadChoice]:
    """Per head, the pattern at the largest scale that visits at most ``allowed`` blocks (else at the smallest)."""
    variants = [_scaled(pattern, scale) for scale in SCALES]
    visited = torch.stack([_visited(v, weights, grid, num_heads)[:, sampled] for v in variants])  # [scales, Hq, …]
    costs = visited.sum((2, 3))
    fits = (costs <= allowed) * torch.arange(1, len(SCALES) + 1, device=costs.device)[:, None]
    chosen = (fits.amax(0) - 1).clamp(min=0).tolist()
    own = torch.stack([visited[scale, head] for head, scale in enumerate(chosen)])
    error, recall = truth.compare(own)
    density = own.sum((1, 2)) / grid.causal[sampled].sum()
    return [
        HeadChoice(variants[scale], float(error[h]), float(recall[h]), float(density[h]), {})
        for h, scale in enumerate(chosen)
    ]


def _visited(pattern: Pattern, weights: Any, grid: Grid, num_heads: int) -> Tensor:
    match pattern:
        case AShape(sink, local):
            return grid.keep(sink, local).expand(num_heads, -1, -1)
        case VerticalSlash() | BlockTopK():
            return pattern.choose(weights[type(pattern)], grid)
        case _:
            raise TypeError(f"{pattern} is no candidate")


def _scaled(pattern: Pattern, factor: float) -> Pattern:
    match pattern:
        case AShape(sink, local):
            return AShape(sink, max(1, round(local * factor)))
        case VerticalSlash(vertical, slash):
            return VerticalSlash(max(1, round(vertical * factor)), max(1, round(slash * factor)))
        case BlockTopK(blocks):
            return replace(pattern, blocks=max(1, round(blocks * factor)))
        case _:
            return pattern


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _gated_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    gates: Tensor | None = None,
    sink: int = 0,
    local: int = 0,
    **_: Any,
) -> tuple[Tensor, None]:
    """alpha * dense + (1 - alpha) * streaming per KV head: query [1, Hq, n, D] → [1, n, Hq, D]."""
    attend = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    dense = F.scaled_dot_product_attention(query, key, value, is_causal=True, **attend)  # type: ignore[arg-type]
    if gates is None:
        return dense.transpose(1, 2), None
    at = torch.arange(query.shape[2], device=query.device)
    near = (at > at[:, None] - local) | (at < sink)
    mask = near & (at <= at[:, None])
    stream = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **attend)  # type: ignore[arg-type]
    alpha = gates[module.layer_idx].repeat_interleave(query.shape[1] // key.shape[1])[None, :, None, None]
    return (alpha * dense + (1 - alpha) * stream).transpose(1, 2), None
