"""Pages chosen and listed by kernels against their definitions in torch; under Triton's interpreter without a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from sparse_attn.kernels.triton import selection
from sparse_attn.kernels.triton.launch import INTERPRETED
from sparse_attn.kernels.work import OF_EARLIER, OF_NOBODY
from sparse_attn.plan.select import best_pages, page_weights

DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.mark.parametrize("top_p", [1.0, 0.6])
@pytest.mark.parametrize(("heads", "kv_heads", "pages", "most"), [(4, 2, 21, 5), (7, 1, 40, 3)])
def test_the_heaviest_pages_are_chosen(heads, kv_heads, pages, most, top_p):
    g = torch.Generator().manual_seed(heads)
    bounds = 3 * torch.randn(4, heads, pages, generator=g)
    ends, first = torch.tensor([pages - 1, -1, 4, 2]), 2  # the second does not choose, the others have few or none
    streaming = torch.zeros(kv_heads, dtype=torch.int32)
    streaming[1:] = 1
    chosen = torch.full((4, kv_heads, most), 77, dtype=torch.int32).to(DEVICE)
    given = (bounds.to(DEVICE), ends.int().to(DEVICE), streaming.to(DEVICE), chosen)
    selection.choose_pages(*given, 0.25, first, top_p)
    want = best_pages(page_weights(bounds, 0.25, kv_heads, first, ends.clamp(min=0)), most, top_p)
    assert torch.equal(chosen[[0, 2, 3], 0].cpu(), want[[0, 2, 3], 0])
    assert (chosen[[0, 2, 3], 1:] == -1).all()
    assert (chosen[1] == 77).all()


def test_of_equal_weights_the_first_pages_are_chosen():
    chosen = torch.zeros(1, 1, 4, dtype=torch.int32, device=DEVICE)
    given = (torch.zeros(1, 2, 20), torch.tensor([20], dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    selection.choose_pages(*(x.to(DEVICE) for x in given), chosen, 1.0, 3)
    assert chosen.flatten().tolist() == [3, 4, 5, 6]


def test_a_list_is_sinks_chosen_pages_and_everything_recent():
    """Four runs: by a row's choice, by an earlier one, seeing all, of nobody; the second head streams."""
    tables = torch.arange(100, 140, dtype=torch.int32).view(2, 20)
    lens = torch.tensor([16 * 15 + 3, 16 * 9], dtype=torch.int32)
    runs = torch.tensor([[0, 1, 16, 13, 14], [1, OF_EARLIER, 10, 8, 9], [1, OF_NOBODY, 10, 0, 0], [0, 0, 0, 0, 0]])
    chosen = torch.tensor([[[-1, -1, -1]] * 2, [[5, 7, 12], [-1, -1, -1]]]).int()
    kept = torch.tensor([[[-1, -1, -1]] * 2, [[3, 6, -1], [-1, -1, -1]]]).int()
    lists, contexts, visited = (torch.full((4, 2, *more), -7, dtype=torch.int32) for more in ((20,), (), ()))
    given = (runs.int(), chosen, kept, torch.tensor([0, 1]).int(), tables, lens)
    into = tuple(x.to(DEVICE) for x in (lists, contexts, visited))
    selection.list_pages(*(x.to(DEVICE) for x in given), into, (1, 2), 16)
    lists, contexts, visited = (x.cpu() for x in into)
    want = [
        ([0, 5, 7, 12, 13, 14, 15], [0, 1, 14, 15]),
        ([0, 3, 6, 8, 9], [0, 1, 9]),
        (list(range(10)), list(range(10))),
        ([], []),
    ]
    for run, of_heads in enumerate(want):
        for head, pages in enumerate(of_heads):
            assert visited[run, head] == len(pages)
            if pages:
                s = int(runs[run, 0])
                assert lists[run, head, : len(pages)].tolist() == [int(tables[s, page]) for page in pages]
                hidden = int(runs[run, 2]) - len(pages)  # pages that are left out, all before the context's end
                assert contexts[run, head] == lens[s] - 16 * hidden
