"""`batch_invariant` on a GPU, under Triton's interpreter: a row's logits have the same bits in every kind of step."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from drafters.tree import DraftTree
from service.engine.config import EngineConfig
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.runner import cuda_graphs
from service.engine.runner.cuda_graphs import Bucket, GraphedRunner, run_eagerly
from service.engine.runner.fused_gpu_layers import fuse_gpu_layers
from service.engine.runner.gpu_invariance import make_gpu_invariant, why_not_invariant
from service.engine.runner.model_runner import ModelRunner
from service.engine.step import Slice
from service.errors import InvalidRequest
from sparse_attn import backend, kernels
from sparse_attn.backend import attach
from sparse_attn.kernels import INVARIANT, fixed_work, triton_kernels
from sparse_attn.kv.pool import KVPool

from ..conftest import make_model

TREE = DraftTree.of([7, 9, 11, 13], [-1, -1, 0, 1])  # two branches of two
PATH = (1, 3)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of a GPU; shares are short and torch's own loops have no tails."""
    from service.engine.runner import fused_gpu_layers

    own = kernels._made_invariant(triton_kernels())
    for module in (backend, fused_gpu_layers):
        monkeypatch.setattr(module, "select_kernels", lambda *_: own)
    monkeypatch.setattr(fixed_work, "SHARE_KEYS", 32)
    monkeypatch.setattr(fixed_work, "MOST_SPLIT", 8)
    monkeypatch.setattr(cuda_graphs, "PREFILL_ROWS", 4)  # of the prompt that is read at the start


def runner_of(family: str, kv: torch.dtype) -> ModelRunner:
    sizes = {"head_dim": 32, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = make_model(family, dtype=torch.float32, **sizes, num_key_value_heads=1)
    pool = KVPool(attach(model), 16, 16, kv)
    assert fuse_gpu_layers(model)
    assert why_not_invariant(model) is None
    make_gpu_invariant(model)
    return ModelRunner(model, pool, INVARIANT)


def request_of(number: int, length: int) -> Request:
    request = Request(f"r{number}", [(7 * i + number) % 90 + 3 for i in range(length)], SamplingParams())
    request.pages = [(page,) for page in range(8 * number, 8 * number + 8)]
    return request


def logits(runner: ModelRunner, *slices: Slice) -> torch.Tensor:
    found = runner.run(slices)
    assert all("fused" not in name for name in found.kernels)
    return found.logits


@pytest.mark.parametrize(("family", "kv"), [("llama", torch.float32), ("qwen3", torch.int8)])
def test_decoding_alone_and_in_a_tree_beside_a_prompt(family: str, kv: torch.dtype, interpreted: None) -> None:
    """From position 31 on, where a share and a page end in the midst of the tree."""
    plain, crowded = runner_of(family, kv), runner_of(family, kv)
    one, other = request_of(0, 32), request_of(1, 9)
    pending = one.token_ids[-1:]
    logits(plain, Slice(one, 0, one.token_ids[:31], samples=True))
    logits(crowded, Slice(one, 0, one.token_ids[:20], samples=True))  # in two chunks
    logits(crowded, Slice(one, 20, one.token_ids[20:31], samples=True), Slice(other, 0, [5] * 9, samples=True))
    path = [pending[0], *(int(TREE.tokens[node]) for node in PATH)]
    alone = [logits(plain, Slice(one, 31 + i, [token], samples=True))[0] for i, token in enumerate(path)]
    drafted = Slice(one, 31, pending, True, TREE)
    in_tree = logits(crowded, drafted, Slice(other, 0, [6] * 9, samples=True))
    graphed = GraphedRunner(crowded.model, crowded.pool, [Bucket(2, 12)], 8, run_eagerly, INVARIANT)
    replayed = logits(graphed, drafted, Slice(other, 9, [8], samples=True))
    assert graphed.graphs.replayed == 1
    for found in (in_tree, replayed):
        for row, expected in zip((0, *(node + 1 for node in PATH)), alone, strict=True):
            assert torch.equal(found[row], expected), row
    for layer, keys in enumerate(crowded.pool.groups[0].keys):
        assert torch.equal(keys[0], plain.pool.groups[0].keys[layer][0])


def test_models_and_options_that_cannot_be_invariant_are_refused() -> None:
    assert "Gemma2" in str(why_not_invariant(make_model("gemma2")))
    assert "no plain layer of half precision or float32" in str(why_not_invariant(make_model("llama")))
    with pytest.raises(InvalidRequest, match="needs Folio's own kernels, and attention_backend asks for sdpa"):
        EngineConfig.of(batch_invariant=True, attention_backend="sdpa")
    assert EngineConfig(batch_invariant=True).backend == INVARIANT
