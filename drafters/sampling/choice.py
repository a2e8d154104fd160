"""The target's choice of a token: y = argmax(log p + g), where g is `noise` keyed by (seed, position, token).

The noise is a pure function of its key, so the token at a position does not depend on how the positions were
grouped into forwards: plain and speculative decoding make the same choices (the Gumbel-max trick; the noise
is shared by all ways of computing the same position). All functions work row by row: a row's result depends
on that row alone, which lets one call serve a ragged batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from drafters.errors import DrafterError
from drafters.sampling.noise import noise
from drafters.sampling.perturbed import best_perturbed, largest_perturbed

_HEAD = 256  # logits sorted at first for top-p; rows whose nucleus is wider are sorted whole


@dataclass(frozen=True)
class Sampling:
    """How a request samples. temperature 0 is greedy; top_k 0 and top_p 1 keep every token."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise DrafterError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise DrafterError(f"top_k must be 0 (off) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise DrafterError(f"top_p must lie in (0, 1], not {self.top_p}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


Column = np.ndarray | Tensor
"""One value a row, [N]."""


class Columns(NamedTuple):
    """How each row of a call samples, on the host: float64 and int64 [N]."""

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    seeds: np.ndarray
    positions: np.ndarray

    def of(self, rows: np.ndarray) -> Columns:
        """Those of some rows, given by a mask."""
        return Columns(*(column[rows] for column in self))

    def tensors(self, device: torch.device) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(column).to(device) for column in self)


def warp(
    logits: Tensor,
    temperature: float | Tensor,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
) -> Tensor:
    """Log-probabilities after temperature, then top-k, then top-p (each renormalised), the order of
    transformers.

    logits [N, V] of any float dtype; the parameters are scalars or [N]. Returns float64 [N, V], -inf outside
    the kept set. Among equal logits at the border the lowest ids are kept. A row of temperature 0 gives all
    mass to its argmax (the lowest id of equals).
    """
    rows, vocab = logits.shape
    temperature = _per_row(temperature, rows, torch.float64, logits.device)
    top_k = _per_row(top_k, rows, torch.int64, logits.device)
    top_p = _per_row(top_p, rows, torch.float64, logits.device)

    greedy = temperature == 0
    divisor = torch.where(greedy, torch.ones_like(temperature), temperature)
    scaled = logits.to(torch.float64) / divisor[:, None]
    top_k = torch.where(greedy, torch.ones_like(top_k), top_k)
    top_k = torch.where((top_k <= 0) | (top_k > vocab), torch.full_like(top_k, vocab), top_k)

    cut = ((top_k < vocab) | (top_p < 1)).nonzero().flatten()
    if len(cut):
        scaled[cut] = _keep_nucleus(scaled[cut], top_k[cut], top_p[cut])
    return torch.log_softmax(scaled, dim=-1)


def choose(
    logits: Tensor,
    temperature: float | Column,
    top_k: int | Column,
    top_p: float | Column,
    seeds: Column,
    positions: Column,
    *,
    any_cut: bool = True,
) -> Tensor:
    """The target's token after each row: int64 [N] = argmax(log p + g), greedy rows argmax of the raw logits.

    logits [N, V]; the parameters are scalars or [N]; seeds and positions int64 [N], a position being that of
    the token chosen. Ties go to the lowest id. ``any_cut`` says whether any row has top_k or top_p in force, where the
    caller knows.
    """
    rows, vocab = logits.shape
    # NumPy's operations on so few values take a fifth of torch's time
    columns = Columns(
        _host(temperature, rows, np.float64),
        _host(top_k, rows, np.int64),
        _host(top_p, rows, np.float64),
        _host(seeds, rows, np.int64),
        _host(positions, rows, np.int64),
    )
    if not any_cut:
        return _pick_from_all(logits, columns)
    cut = ((columns.top_k > 0) & (columns.top_k < vocab)) | (columns.top_p < 1)
    cut &= columns.temperature != 0
    if cut.all():
        return _pick_from_head(logits, columns)
    chosen = _pick_from_all(logits, columns)
    if not cut.any():
        return chosen
    at = torch.from_numpy(np.flatnonzero(cut)).to(logits.device)
    chosen[at] = _pick_from_head(logits[at], columns.of(cut))
    return chosen


def best_choices(
    logits: Tensor, sampling: Sampling, positions: Sequence[int], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that `choose` ranks highest after each row of logits [N, V], best first: ids int64 [N, count], and log
    p + g up to a constant of the row, float64 [N, count], which is -inf for tokens that top-k or top-p drop.

    positions [N] are those of the tokens; the temperature must not be 0, and count at most V.
    """
    rows, vocab = logits.shape
    seeds, at = np.full(rows, sampling.seed, np.int64), np.asarray(positions, np.int64)
    if logits.is_cpu and not 0 < sampling.top_k < vocab and sampling.top_p == 1:
        return best_perturbed(exact(logits), np.full(rows, sampling.temperature), seeds, at, count)
    log_p = warp(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    best = torch.topk(perturb(log_p, torch.from_numpy(seeds), torch.from_numpy(at)), count, dim=-1)
    return best.indices.cpu().numpy(), best.values.cpu().numpy()


def exact(logits: Tensor) -> np.ndarray:
    """The same numbers in NumPy: bfloat16 and float16 have no type there or are slow; float32 holds them exactly."""
    held = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return np.ascontiguousarray(held.numpy())


def _pick_by_definition(logits: Tensor, columns: Columns) -> Tensor:
    temperature, top_k, top_p, seeds, positions = columns.tensors(logits.device)
    return torch.argmax(perturb(warp(logits, temperature, top_k, top_p), seeds, positions), dim=-1)


def _pick_from_all(logits: Tensor, columns: Columns) -> Tensor:
    """Greedy rows and those that keep every token. On a CPU noise is drawn only for tokens that it could make the
    largest."""
    if not logits.is_cpu:
        return _pick_by_definition(logits, columns)
    return torch.from_numpy(largest_perturbed(exact(logits), columns.temperature, columns.seeds, columns.positions))


def _pick_from_head(logits: Tensor, columns: Columns) -> Tensor:
    """Rows cut by top-k or top-p: noise for the kept head alone. Rows whose kept set does not end inside the head, or
    ends between equals, go by the definition."""
    temperature, top_k, top_p, seeds, positions = columns.tensors(logits.device)
    vocab = logits.shape[-1]
    size = min(_HEAD, vocab)
    scaled = logits.to(torch.float64) / temperature[:, None]
    values, ids = torch.topk(scaled, size, dim=-1)
    limited = (top_k > 0) & (top_k < size)
    inside = (
        torch.arange(size, device=logits.device) < torch.where(limited, top_k, torch.full_like(top_k, size))[:, None]
    )
    head = values.masked_fill(~inside, float("-inf"))
    total = torch.where(limited, torch.logsumexp(head, -1), torch.logsumexp(scaled, -1))
    mass = torch.exp(head - total[:, None])
    kept = ((torch.cumsum(mass, -1) - mass < top_p[:, None]) & inside).sum(-1).clamp(min=1)

    border = values.gather(1, (kept - 1)[:, None]) == values.gather(1, kept.clamp(max=size - 1)[:, None])
    plain = (kept < size) & ~border[:, 0]
    # top-k beyond the head, without limiting the mass, is not what `total` counts
    plain &= limited | (top_k <= 0) | (top_k >= vocab)
    ranks = torch.arange(size, device=logits.device)
    scores = values + noise(seeds[:, None], positions[:, None], ids)
    scores = scores.masked_fill(ranks >= kept[:, None], float("-inf"))
    picked = ids.gather(1, scores.argmax(-1, keepdim=True))[:, 0]
    rest = ~plain
    if rest.any():
        picked[rest] = _pick_by_definition(logits[rest], columns.of(rest.cpu().numpy()))
    return picked


def perturb(log_p: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """log p + g, float64 [N, V]; noise is drawn for the tokens of non-zero probability only."""
    rows, tokens = torch.isfinite(log_p).nonzero(as_tuple=True)
    scores = log_p.clone()
    scores[rows, tokens] += noise(seeds.to(rows.device)[rows], positions.to(rows.device)[rows], tokens)
    return scores


def _keep_nucleus(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Scaled logits with -inf outside each row's top-k and top-p set."""
    vocab = scaled.shape[-1]
    # the head's size depends on the row alone, so that a row's sums are the same in every batch
    head = torch.where(top_k < vocab, top_k, torch.full_like(top_k, min(_HEAD, vocab)))
    out = torch.empty_like(scaled)
    for size in torch.unique(head).tolist():
        rows = (head == size).nonzero().flatten()
        part, complete = _nucleus_from_head(scaled[rows], top_k[rows], top_p[rows], int(size))
        out[rows] = part
        wide = rows[~complete]
        if len(wide):
            out[wide] = _nucleus_from_head(scaled[wide], top_k[wide], top_p[wide], vocab)[0]
    return out


def _nucleus_from_head(scaled: Tensor, top_k: Tensor, top_p: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cut by the `size` largest logits of each row; also says for which rows these were enough (bool [N])."""
    vocab = scaled.shape[-1]
    values = torch.topk(scaled, size, dim=-1).values
    limited = top_k < vocab
    total = torch.where(limited, torch.logsumexp(values, -1), torch.logsumexp(scaled, -1))
    mass = torch.exp(values - total[:, None])
    before = torch.cumsum(mass, -1) - mass
    kept = (before < top_p[:, None]).sum(-1).clamp(min=1)
    complete = limited | (kept < size) | (size == vocab)

    threshold = values.gather(1, (kept - 1)[:, None])
    above = scaled > threshold
    equal = scaled == threshold
    room = kept - above.sum(-1)
    keep = above | (equal & (torch.cumsum(equal, -1) <= room[:, None]))
    return scaled.masked_fill(~keep, float("-inf")), complete


def _per_row(value: float | Tensor, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    tensor = torch.as_tensor(value, dtype=dtype, device=device)
    return tensor.expand(rows) if tensor.dim() == 0 else tensor


def _host(value: float | Column, rows: int, dtype: type) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.dtype == dtype:
        return value
    array: np.ndarray = np.asarray(value.cpu() if isinstance(value, Tensor) else value, dtype=dtype)
    return np.ascontiguousarray(array) if array.ndim else np.full(rows, array)
