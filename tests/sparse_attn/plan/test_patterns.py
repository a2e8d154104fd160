"""Every pattern: causal, sinks and recent keys kept, whole when its budget is; static ones blind to chunking."""

import itertools

import pytest
import torch

from sparse_attn.plan.grid import Grid
from sparse_attn.plan.patterns import AntiDiagonal, AShape, BlockTopK, Coverage, Dense, TriShape, VerticalSlash

SPARSE = [
    AShape(16, 40),
    TriShape(16, 40, 200),
    VerticalSlash(32, 64),
    BlockTopK(4, 16, 40),
    AntiDiagonal(8, 0.5, 16, 40),
    AntiDiagonal(8, 0.5, 16, 40, share=True),
    AntiDiagonal(4, 0.5, 16, 40, means=True),
    Coverage(0.5, 0.1, 32, 16, 40),
    Coverage(0.5, 0.9, 32, 16, 40),
]
GENEROUS = [
    AShape(16, 300),
    TriShape(16, 16, 0),
    VerticalSlash(300, 300),
    BlockTopK(100),
    AntiDiagonal(8, 1.0),
    Coverage(1.0, 0.1, 600),
    Coverage(1.0, 0.9, 600),
    Dense(),
]


def visit(seq, pattern, first, end, block=32):
    rows = seq.rows(first, end)
    grid = Grid.of(rows, block, block)
    return pattern.visit(rows, grid, range(4)), grid


@pytest.mark.parametrize("pattern", SPARSE, ids=lambda p: f"{p}")
@pytest.mark.parametrize("first", [0, 130])
def test_sparse_causal_with_sinks_and_recent_keys(make_sequence, pattern, first):
    seq = make_sequence(300, seed=3)
    seq.store(0, first)
    visited, grid = visit(seq, pattern, first, 300)
    assert not (visited & ~grid.causal).any()
    assert visited[..., 0].all()
    for n, last in enumerate(grid.last.tolist()):
        assert visited[:, n, max(last - 31, 0) // 32 : last // 32 + 1].all()
    assert visited.float().mean() < grid.causal.float().mean() * 0.95


@pytest.mark.parametrize("pattern", GENEROUS, ids=lambda p: f"{p}")
@pytest.mark.parametrize("first", [0, 130])
def test_a_budget_of_the_whole_length_is_dense(make_sequence, pattern, first):
    seq = make_sequence(300)
    seq.store(0, first)
    visited, grid = visit(seq, pattern, first, 300)
    assert torch.equal(visited, grid.causal.expand_as(visited))


@pytest.mark.parametrize("pattern", [p for p in SPARSE if p.static], ids=lambda p: f"{p}")
def test_static_patterns_do_not_see_how_the_prompt_is_cut(make_sequence, pattern):
    seq = make_sequence(300)
    whole, _ = visit(seq, pattern, 0, 300)
    for cuts in ([0, 64, 300], [0, 37, 39, 150, 300]):
        for first, end in itertools.pairwise(cuts):
            part, grid = visit(seq, pattern, first, end)
            expected = whole[:, first // 32 : (end - 1) // 32 + 1, : part.shape[2]] & grid.causal
            assert torch.equal(part, expected)


def test_grouped_patterns_give_a_group_the_same_blocks(make_sequence):
    seq = make_sequence(300)
    for pattern in SPARSE:
        visited, _ = visit(seq, pattern, 0, 300)
        if pattern.grouped:
            assert torch.equal(visited[0], visited[-1])


def test_liked_keys_are_found(make_sequence):
    """A key that every query likes is a column: content-based patterns must visit its block."""
    seq = make_sequence(512, seed=5)
    seq.k[:, :, 0] = 0
    seq.k[100, :, 0] = 9
    for pattern in (
        VerticalSlash(64, 32),
        AntiDiagonal(8, 0.8),
        AntiDiagonal(8, 0.8, means=True),
        Coverage(0.8, 0.1, 32),
    ):
        visited, _ = visit(seq, pattern, 0, 512)
        assert visited[:, 4:, 100 // 32].all(), pattern
    seq.k[96:128, :, 0] = 9  # means of blocks cannot see one key, but they see a block of them
    visited, _ = visit(seq, BlockTopK(5, 16, 32), 0, 512)
    assert visited[:, 4:, 100 // 32].all()


def test_diagonals_are_followed(make_sequence):
    """Queries that look back a fixed distance: vertical-slash must keep the diagonal for early rows too."""
    seq = make_sequence(512, dim=32, seed=6)
    code = torch.nn.functional.normalize(torch.randn(512, 32, dtype=torch.float64), dim=-1) * 12
    seq.k[:] = code[:, None]
    seq.q[:] = code.roll(200, 0)[:, None]
    visited, _ = visit(seq, VerticalSlash(32, 256), 0, 512)
    for n in range(8, 16):
        block = (n * 32 - 200) // 32
        assert visited[:, n, block : block + 2].all()
