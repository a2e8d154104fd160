"""Gumbel noise keyed by (seed, position, token): the same value whoever asks, on every device.

The noise is -log e with e independent Exp(1) for every token. It is drawn from the top down, by blocks of 256 tokens
(exact, as A* sampling, arXiv 1411.0030, section 3; here by the memorylessness of the exponential): the least of 256
exponentials is Exp(1) / 256 and falls on each of them alike; given the least and its place, the others are the least
plus exponentials of their own. So one hash bounds the noise of a block, and `perturbed` reads few tokens of few blocks.
A block's least and its place depend on the key alone, not on where the vocabulary ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256
GOLDEN = 0x9E3779B97F4A7C15  # the step from token to token; splitmix64's
BLOCK_STEP = 0xD1B54A32D192ED03  # the step from block to block: another, so that no block shares a token's bits
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def gumbel(seeds: Tensor, positions: Tensor, vocab_size: int, device: torch.device | str | None = None) -> Tensor:
    """`noise` of all tokens, float64 [N, vocab_size], for N (seed, position) keys."""
    key = _key(seeds.to(device), positions.to(device))[:, None]
    tokens = torch.arange(vocab_size, device=key.device)
    blocks = torch.arange(-(-vocab_size // BLOCK), device=key.device)
    least, place = (part.repeat_interleave(BLOCK, -1)[:, :vocab_size] for part in _least(key, blocks))
    return _noise(key, tokens, least, place)


def noise(seeds: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Gumbel(0, 1) noise, float64, for broadcastable int64 keys, one value a (seed, position, token).

    The random bits are the same on every device; the logarithms are the device's own (within an ulp of each other).
    """
    key = _key(seeds, positions)
    return _noise(key, tokens, *_least(key, tokens // BLOCK))


def uniform(seeds: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Uniform float64 inside (0, 1) for broadcastable int64 keys: a splitmix64 finaliser, wrapping in int64."""
    return _unit(_token_bits(_key(seeds, positions), tokens))


def _noise(key: Tensor, tokens: Tensor, least: Tensor, place: Tensor) -> Tensor:
    own = -torch.log(_unit(_token_bits(key, tokens)))
    return -torch.log(torch.where(tokens % BLOCK == place, least, least + own))


def _least(key: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The least exponential of each block and the place in the block that has it, from bits that do not overlap."""
    bits = _mix(key + (blocks + 1) * _signed(BLOCK_STEP))
    return -torch.log(_unit(bits)) / BLOCK, bits & (BLOCK - 1)


def _key(seeds: Tensor, positions: Tensor) -> Tensor:
    return _mix(_mix(seeds + _signed(GOLDEN)) ^ (positions * _signed(GOLDEN)))


def _token_bits(key: Tensor, tokens: Tensor) -> Tensor:
    return _mix(key + (tokens + 1) * _signed(GOLDEN))


def _unit(bits: Tensor) -> Tensor:
    """The upper 52 bits and a half: the largest value is below 1 in float64, the smallest above 0."""
    return (_shift(bits, 12).to(torch.float64) + 0.5) * 2.0**-52


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(MIX_2)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant
