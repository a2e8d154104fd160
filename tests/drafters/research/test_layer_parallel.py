"""EasySpec: two ranks run layers side by side; what is accepted is put right; tokens are those of plain decoding."""

from __future__ import annotations

import threading

import pytest
import torch

from drafters.base import RequestState
from drafters.errors import DrafterError
from drafters.models.best_first import BestFirst
from drafters.options import DraftModelOptions
from drafters.research.layer_parallel import LayerParallel, LayerParallelDrafter
from drafters.sampling.choice import Sampling
from drafters.tracked import TrackedDrafter

IDS = [3, 7, 1, 4, 9, 2, 6, 5]


class Exchange:
    """Two ranks in two threads."""

    def __init__(self):
        self._barrier, self._of = threading.Barrier(2), [None, None]

    def all_of(self, rank, tensor):
        self._of[rank] = tensor
        self._barrier.wait(60)
        found = [part.clone() for part in self._of]
        self._barrier.wait(60)
        return found

    def part(self, model, rank):
        return LayerParallel(model, rank, 2, lambda t: self.all_of(rank, t), lambda t: self.all_of(rank, t)[0])


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama(vocab_size=12, num_hidden_layers=4, initializer_range=0.3)


@pytest.fixture
def led(model):
    """Rank 0's part; rank 1 follows in a thread."""
    exchange = Exchange()
    other = threading.Thread(target=exchange.part(model, 1).follow, daemon=True)
    other.start()
    yield exchange.part(model, 0)
    other.join(60)
    assert not other.is_alive()


def exact(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def fuzzy(model, ids):
    """The whole text with the attentions of two layers at a time on the same input."""
    body, x = model.model, model.model.embed_tokens(torch.tensor([ids]))
    angles = body.rotary_emb(x, torch.arange(len(ids))[None])
    mask = torch.ones(len(ids), len(ids)).tril().log()[None, None]
    with torch.no_grad():
        for first in range(0, 4, 2):
            layers = body.layers[first : first + 2]
            attended = [layer.self_attn(layer.input_layernorm(x), angles, attention_mask=mask)[0] for layer in layers]
            for layer, more in zip(layers, attended, strict=True):
                x = x + more
                x = x + layer.mlp(layer.post_attention_layernorm(x))
        return model.lm_head(body.norm(x))[0]


def test_layer_by_layer_it_is_the_model_and_side_by_side_nearly(model, led):
    session = led.open([])
    torch.testing.assert_close(session.advance(IDS), exact(model, IDS), atol=1e-4, rtol=1e-4)
    session.advance([1])
    session.close()


def test_side_by_side_it_is_the_fuzzy_model(model, led):
    session = led.open([])
    rows = torch.cat((session.extend(IDS[:5], range(-1, 4)), session.extend(IDS[5:], range(4, 7))))
    session.close()
    torch.testing.assert_close(rows, fuzzy(model, IDS), atol=1e-4, rtol=1e-4)
    assert (rows - exact(model, IDS)).abs().max() > 0.1


def test_what_is_accepted_is_calibrated(model, led):
    session = led.open(IDS[:3])
    session.extend(IDS[3:6], [-1, 0, 1])
    with pytest.raises(DrafterError, match="run again"):
        session.commit([0, 1])
    session.commit([])
    rows = session.advance(IDS[3:])
    assert session.length == 8
    session.close()
    torch.testing.assert_close(rows, exact(model, IDS)[3:], atol=1e-4, rtol=1e-4)


def test_bad_wishes_are_refused(model, led):
    session = led.open(IDS[:3])
    with pytest.raises(DrafterError, match="draft chains"):
        session.extend([1, 2], [-1, -1])
    session.close()
    with pytest.raises(DrafterError, match="4 layers make no groups of 3"):
        LayerParallel(model, 0, 3)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=3)], ids=str)
def test_tokens_are_those_of_plain_decoding(lab, model, led, sampling):
    target = lab.Model(vocab_size=12, seed=1, copying=3.0)
    expected = lab.plain(target, IDS, sampling, 24)
    resources = lab.resources(target)
    options = DraftModelOptions(branching=1, depth=4, min_score=0)
    builder = BestFirst("easyspec", resources.learned.calibration, options)
    drafter = TrackedDrafter(LayerParallelDrafter(led, builder), resources.learned.calibration, 12, 16)
    assert lab.speculate(drafter, target, RequestState("r", list(IDS), 8, sampling), 24) == expected
    assert drafter.stats.failures == 0
    assert drafter.stats.by_source["easyspec"].drafted > 24


def _rank(rank, model, store, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    part = LayerParallel(model, rank, 2)
    if rank:
        part.follow()
    else:
        session = part.open(IDS[:3])
        rows = [session.extend(IDS[3:5], [-1, 0]), session.advance(IDS[3:])]
        session.close()
        queue.put([row.tolist() for row in rows])
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_on_two_processes(model, led, tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, model, tmp_path / "store", queue)) for rank in range(2)]
    for one in ranks:
        one.start()
    rows = queue.get(timeout=120)
    for one in ranks:
        one.join(60)
        assert one.exitcode == 0
    session = led.open(IDS[:3])
    for found, wanted in zip(rows, [session.extend(IDS[3:5], [-1, 0]), session.advance(IDS[3:])], strict=True):
        torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-5, rtol=1e-5)
    session.close()
