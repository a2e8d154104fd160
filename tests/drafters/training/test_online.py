"""A drafter that goes on learning while it serves: bounded, restorable, one version an answer, one owner's."""

from __future__ import annotations

import pytest
import torch

from drafters.base import RequestState
from drafters.heads.head import LAST
from drafters.learned import LearnedByOwner
from drafters.options import TrainedOptions
from drafters.registry import build
from drafters.sampling.choice import Sampling
from drafters.training import online as module
from drafters.training.online import Allowance, Lesson, Notes, OnlineHead, Packing

PERIOD = [3, 7, 1, 4, 9, 2, 6, 5]
COUNTING = [PERIOD[i % 8] for i in range(65)]


@pytest.fixture
def lesson(lab):
    """Of a head: a text that counts through a period, whose states the output matrix makes the next count of."""
    target = lab.Target(12)

    def make(head, first=0, count=48):
        tokens = COUNTING[first : first + count]
        states = target.states(tokens, (*head.config.reads, LAST))
        after = torch.tensor(COUNTING[first + 1 : first + count + 1])
        for place, layer in enumerate((*head.config.reads, LAST)):
            if layer == LAST:
                states[:, place] = target.output_rows(after)
        return Lesson(torch.tensor(tokens), states.half(), torch.ones(count))

    return make


def first_guesses(head, lesson):
    """The share of pairs whose first guess is right."""
    with torch.no_grad():
        guess = next(head.guesses(lesson.states.float()[None, :, :-1], lesson.tokens[None], torch.Generator()))
    return float((guess.logits[0].argmax(-1)[:-1] == lesson.tokens[guess.at[:-1] + 2]).float().mean())


@pytest.mark.parametrize("name", ["hydra", "eagle"])
def test_it_learns_what_is_served(lab, lesson, name):
    base = lab.head(name)
    weights = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    online = OnlineHead(base)
    before = first_guesses(base, lesson(base, 5))
    for i in range(16):
        online.take(lesson(base, i % 8), 2.0)
    assert online.version > 3
    assert first_guesses(online.head, lesson(base, 5)) > max(0.6, before + 0.2)
    assert all(torch.equal(weights[key], tensor) for key, tensor in base.state_dict().items())
    assert online.head.lm_head is base.lm_head  # what is lent is not copied
    assert not any(weight.requires_grad for weight in online.head.parameters())


def test_no_more_time_is_spent_than_was_earned(lab, lesson, monkeypatch):
    base, clock, slow = lab.head("eagle3"), [0.0], module._loss

    def loss(*args):
        clock[0] += 0.25
        return slow(*args)

    monkeypatch.setattr(module, "_loss", loss)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    online, allowance, learning = [OnlineHead(base) for _ in range(3)], Allowance(), 0.0
    for i in range(30):  # of three owners
        clock[0] += 2.0
        began, head = clock[0], online[i % 3]
        if head.take(lesson(base), allowance.seconds(0.2)):
            allowance.spent()
        learning += clock[0] - began
    assert sum(head.version for head in online) > 2
    assert 1 < learning <= 0.2 * clock[0] + 1
    nothing = OnlineHead(base)
    assert not any(nothing.take(lesson(base), 0.0) for _ in range(5))


def test_a_version_that_is_no_better_is_dropped_and_one_can_go_back(lab, lesson, monkeypatch):
    base = lab.head("eagle3")
    online = OnlineHead(base)
    online.take(lesson(base), 2.0)
    online.take(lesson(base, 3), 2.0)
    assert online.head is not base
    online.restore()
    assert online.head is base
    monkeypatch.setattr(module, "_RATE", 0.0)
    version = online.version
    online.take(lesson(base), 2.0)
    assert online.version == version


def test_what_guesses_is_packed_and_what_learns_is_not(lab, lesson):
    base, made = lab.head("eagle3"), []

    def pack(head):
        made.append(head.copied().requires_grad_(False))
        made[-1].layers[0].mlp.down_proj = None  # as an engine's layer, which nothing can be learned with
        return made[-1]

    online = OnlineHead(base, Packing(base.copied, pack))
    for i in range(8):
        online.take(lesson(base, i), 2.0)
    assert online.version == len(made) > 2
    assert online.head is made[-1]
    before = online.nbytes
    online.restore()
    assert online.head is made[-2]
    online.take(lesson(base), 2.0)
    assert online.head is made[-1]
    assert before > 12 * base.num_parameters


def test_memory_is_bounded(lab, lesson, monkeypatch):
    monkeypatch.setattr(module, "_STEPS", 1)
    base = lab.head("eagle3")
    online = OnlineHead(base)
    for _ in range(3):
        online.take(lesson(base), 2.0)
    full = online.nbytes
    assert full > 8 * base.num_parameters
    for _ in range(8):
        online.take(lesson(base), 2.0)
    assert online.nbytes <= full + 8 * lesson(base).nbytes
    assert len(online._lessons) == 8


def test_notes_keep_the_end_and_what_was_missed():
    notes, states = Notes(), torch.arange(400.0)[:, None, None]
    notes.read(0, states[:30])
    notes.read(20, states[20:300])  # some again
    notes.read(300, states[300:399])
    assert notes.lesson(range(400), 4) is None  # nothing was missed
    for place in (5, 200, 398, 399):
        notes.miss(place)
    found = notes.lesson(range(400), 4)
    assert found.tokens.tolist() == list(range(143, 399))
    assert (found.states[:, 0, 0] == torch.arange(143, 399)).all()
    assert found.weights.nonzero().numel() == 256
    assert (found.weights == 1).nonzero().flatten().tolist() == [57, 255]
    notes.read(500, states[:3])  # behind a gap
    assert notes.lesson(range(600), 4) is None


def test_tokens_are_those_of_plain_decoding_and_an_answer_has_one_version(lab, monkeypatch):
    monkeypatch.setattr(module, "_loss", lambda *args, losses=iter([2.0, 1.0, 1.0] * 100): losing(next(losses), *args))
    monkeypatch.setattr(module, "_STEPS", 1)
    target, sampling = lab.Model(vocab_size=12, seed=1, copying=3.0), Sampling(temperature=0.8, seed=4)
    prompt = [3, 7, 1, 4, 4, 9, 2, 6, 5, 3, 8, 1]
    resources = lab.resources(target, head=lab.head("eagle3"))
    resources.learning.seconds = lambda share: 1.0
    expected = lab.plain(target, prompt, sampling, 40)
    under_way = build(TrainedOptions(online=0.2), resources)
    heads = set()
    for i in range(4):
        drafter = build(TrainedOptions(min_score=0, paced=False, online=0.2), resources)
        heads.add(drafter._inner._head)
        assert lab.speculate(drafter, target, RequestState(f"r{i}", list(prompt), 12, sampling), 40) == expected
        assert drafter.stats.failures == 0
    assert resources.learned.online(resources.head, None).version > 0
    assert len(heads) > 1
    assert under_way._inner._head is resources.head
    assert build(TrainedOptions(), resources)._inner._head is resources.head  # off by default


def losing(value, head, lesson, random):
    """The loss, as large as one likes."""
    loss = module.distilled(head, lesson.tokens[None], lesson.states.float()[None], random)
    return loss * 0 + value + (loss - loss.detach())


def test_owners_learn_apart_and_are_forgotten(lab, lesson):
    base, owners = lab.head("eagle3"), LearnedByOwner(1 << 30)
    alice, bob = (owners.of(name).online(base, None) for name in ("alice", "bob"))
    for i in range(3):
        alice.take(lesson(base, i), 2.0)
    assert alice.version > 0
    assert bob.head is base
    assert owners.nbytes > alice.nbytes > 0
    owners.forget("alice")
    assert owners.of("alice").online(base, None).head is base
