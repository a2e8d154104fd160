"""The family of trained drafters: what is guessed while serving is what was trained."""

from __future__ import annotations

import pytest
import torch

from drafters.errors import DrafterError
from drafters.heads.folder import HEADS, load_head, save_head
from drafters.heads.head import LAST, HeadConfig
from drafters.options import TRAINABLE


def begun(head, target, text):
    """A context that goes on behind `text`, the root included, once it was told of it."""
    nodes: list[list[int]] = []

    def shallow(tokens, parents):
        if parents[0] < 0:
            nodes.clear()
        for token, parent in zip(tokens.tolist(), parents, strict=True):
            nodes.append([*(text[:-1] if parent < 0 else nodes[parent]), token])
        return torch.cat([target.states(path, [head.exit or LAST])[-1] for path in nodes[-len(parents) :]])

    target.prompts = head.prompts
    return head.begin(shallow)


def test_the_family_is_named_without_torch():
    assert set(TRAINABLE) == set(HEADS)


RIDING = ("ppd", "tidar")
TEXT = [3, 7, 1, 4, 4, 9, 2, 6, 5, 3, 8, 1, 10, 2, 7, 5, 6, 1, 9, 3]
WINDOWED = [
    name for name in HEADS if name not in ("medusa", "hydra", "falcon", *RIDING)
]  # whose recurrence, or target, remembers more


def trained_on(head, target, tokens):
    """The logits of each guess at training, [guess][pair]."""
    states = target.states(tokens, head.config.reads)[None]
    random = torch.Generator().manual_seed(0)
    found = []
    with torch.no_grad():
        for guess in head.guesses(states, torch.tensor([tokens]), random):
            found.append({int(i): row for i, row in zip(guess.at, guess.logits[0], strict=True)})
    return found


@pytest.mark.parametrize("pieces", [[20], [5, 1, 3, 11]], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_serving_guesses_what_was_trained(lab, name, pieces):
    """Behind each part of the text: the first guess, then along the text that follows, which is a chain of nodes."""
    target, head = lab.Target(12), lab.head(name, **({"sure": 100} if name == "s2d" else {}))  # all layers
    wanted = trained_on(head, target, TEXT + TEXT)
    states = target.states(TEXT + TEXT, head.config.reads)
    text, first = [], 0
    context = begun(head, target, text)
    for count in pieces:
        text[:] = (TEXT + TEXT)[: first + count + 1]
        after = torch.tensor((TEXT + TEXT)[first + 1 : first + count + 1])
        with torch.no_grad():
            rows = [context.follow(states[first : first + count], after, first)]
            for k in range(1, head.config.depth):
                token = (TEXT + TEXT)[first + count + k]
                rows.append(context.expand(torch.tensor([token]), [k - 2]))
        pair = first + count - 1
        seen = 0
        for guess, row in zip(wanted, rows, strict=True):
            if pair in guess:  # blocks are drawn
                torch.testing.assert_close(row[0], guess[pair], atol=1e-4, rtol=1e-3)  # sums in another order
                seen += 1
        assert seen == len(rows) or name in ("dflash", "falcon", *RIDING)
        first += count


@pytest.mark.parametrize("name", HEADS)
def test_a_branch_knows_nothing_of_the_others(lab, name):
    target, head = lab.Target(12), lab.head(name)
    states, after = target.states(TEXT, head.config.reads), torch.tensor([*TEXT[1:], 5])

    def below(*calls):
        context = begun(head, target, [*TEXT, 5])
        with torch.no_grad():
            context.follow(states, after, 0)
            return torch.cat([context.expand(torch.tensor(tokens), parents) for tokens, parents in calls])

    alone = below(([4], [-1]), ([6], [0]))[-1]
    among = below(([9, 4], [-1, -1]), ([2, 6, 1], [0, 1, 0]))
    torch.testing.assert_close(among[3], alone, atol=1e-5, rtol=1e-4)
    if name not in ("medusa", "dflash", "falcon", *RIDING):
        assert not torch.allclose(among[0], among[1])


@pytest.mark.parametrize("name", WINDOWED)
def test_only_the_window_is_looked_at(lab, name):
    """What lies before it changes nothing, of one layer; what lies in it does. So too below the first guess."""
    target, head = lab.Target(12), lab.head(name, window=6, **({"layers": 1} if name == "s2d" else {}))

    def last(changed: int) -> torch.Tensor:
        states = target.states(TEXT, head.config.reads)
        states[changed] += 1
        context = begun(head, target, TEXT[:19])
        with torch.no_grad():
            for first in (0, 9):
                rows = context.follow(states[first : first + 9], torch.tensor(TEXT[first + 1 : first + 10]), first)
            return torch.cat((rows, context.expand(torch.tensor([5]), [-1])))

    untouched = last(19)  # behind the pairs that are read
    for outside in (5, 11):
        assert torch.allclose(last(outside), untouched, atol=1e-5)
    for inside, as_it_was in zip(last(13), untouched, strict=True):
        assert not torch.allclose(inside, as_it_was, atol=1e-4)


@pytest.mark.parametrize("draft_vocab", [0, 7])
@pytest.mark.parametrize("name", HEADS)
def test_what_is_written_is_read(lab, tmp_path, name, draft_vocab):
    target, head = lab.Target(12), lab.head(name, draft_vocab=draft_vocab)
    save_head(head, tmp_path)
    again = load_head(tmp_path, target)
    assert again.config.as_dict() == head.config.as_dict()
    assert (again.vocabulary == head.vocabulary).all()
    states, after = target.states(TEXT[:6], head.config.reads), torch.tensor(TEXT[1:7])
    with torch.no_grad():
        one, other = (begun(h, target, TEXT[:7]).follow(states, after, 0) for h in (head, again))
    assert (one - other).abs().max() < 0.05 * one.abs().max()  # half precision
    assert "lm_head.weight" not in again.own_state()


def test_fspad_goes_on_from_one_state_and_guesses_by_another(lab):
    """And its token decides how much of the MLP over both comes in."""
    head = lab.head("fspad").copied()
    features, tokens, places = lab.Target(12).states(TEXT[:4], (LAST,))[:, 0], torch.tensor(TEXT[1:5]), torch.arange(4)

    def made():
        with torch.no_grad():
            own, _ = head.run(features, tokens, places, [], torch.ones(4, 4, dtype=torch.bool).tril())
            return own[:, :16], head.logits(own)

    state, logits = made()
    with torch.no_grad():
        head.layers[-1].mlp.down_proj.weight[16:] += 1
    again, others = made()
    assert torch.equal(again, state)
    assert not torch.allclose(others, logits)
    with torch.no_grad():
        joined = torch.cat((torch.zeros(4, 16), features), -1)
        assert torch.allclose(head.fc(joined), head.fc.fc(joined))
        assert not torch.allclose(head.fc(joined + 1), head.fc.fc(joined + 1))


def test_a_sure_node_is_spared_the_other_layers(lab):
    """What the second layer would make of nodes does not matter where the first is always sure enough."""
    states = lab.Target(12).states(TEXT[:6], (LAST,))

    def below_root(head, seed):
        torch.manual_seed(seed)
        context = head.begin()
        with torch.no_grad():
            context.follow(states, torch.tensor(TEXT[1:7]), 0)
            for weight in (head.layers[1].mlp.down_proj.weight, head.layers[1].self_attn.q_proj.weight):
                weight.normal_()
            rows = context.expand(torch.tensor([4, 6]), [-1, -1])
            return torch.cat((rows, context.expand(torch.tensor([2]), [1])))

    for sure, spared in ((0, True), (100, False)):
        one, other = (below_root(lab.head("s2d", sure=sure).copied(), seed) for seed in (0, 1))
        assert torch.equal(one, other) == spared


def test_a_head_of_another_target_is_refused(lab, tmp_path):
    save_head(lab.head("eagle3"), tmp_path)
    for other, said in (
        (lab.Target(13), "12 token ids, this one has 13"),
        (lab.Target(12, seed=5), "made for tiny, whose weights are others"),
    ):
        with pytest.raises(DrafterError, match=said):
            load_head(tmp_path, other)


def test_damage_is_told(lab, tmp_path):
    target = lab.Target(12)
    with pytest.raises(DrafterError, match=r"needs a config\.json"):
        load_head(tmp_path, target)
    save_head(lab.head("medusa"), tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"format": 1', '"format": 2'))
    with pytest.raises(DrafterError, match="newer format"):
        load_head(tmp_path, target)
    (tmp_path / "config.json").write_text(config.replace('"depth": 4', '"depth": 5'))
    with pytest.raises(DrafterError, match=r"lacks heads\.4"):
        load_head(tmp_path, target)
    (tmp_path / "config.json").write_text(config.replace('"medusa"', '"mamba"'))
    with pytest.raises(DrafterError, match="no trained drafter of the kind 'mamba'"):
        load_head(tmp_path, target)
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DrafterError, match="cannot be read"):
        load_head(tmp_path, target)


def test_a_layer_that_the_target_lacks_is_refused(lab):
    with pytest.raises(DrafterError, match="reads layer 5, and the target has 4"):
        lab.head("eagle3", reads=(1, 5))


def test_the_description_is_whole(lab):
    described = lab.head("eagle3").config.as_dict()
    assert HeadConfig.of(described).as_dict() == described
    with pytest.raises(DrafterError, match="no description"):
        HeadConfig.of({"name": "eagle3", "reads": [1]})


@pytest.mark.parametrize("name", RIDING)
def test_prompt_tokens_see_the_text_up_to_their_place_and_one_another(lab, name, monkeypatch):
    """Those before them, or all of their block; none behind another place."""
    head, given = lab.head(name), []

    def through(target, embedded, positions, seen):
        given.append((positions, seen))
        return torch.zeros_like(embedded)

    monkeypatch.setattr(lab.Target, "through", through)
    at, text, rows = head.behind(torch.tensor([TEXT] * 2), torch.Generator().manual_seed(0))
    [(positions, seen)] = given
    assert (text.shape[1], rows.shape[1]) == (20, 3 * len(at))
    assert positions.tolist() == [*range(20), *(int(i) + k for i in at for k in (1, 2, 3))]
    assert torch.equal(seen[:20, :20], torch.ones(20, 20, dtype=torch.bool).tril())
    assert not seen[:20, 20:].any()
    assert seen[20:, :20].sum(1).tolist() == [int(i) + 1 for i in at for _ in range(3)]
    one = torch.ones(3, 3, dtype=torch.bool)
    assert torch.equal(seen[20:, 20:], torch.block_diag(*[one if name == "tidar" else one.tril()] * len(at)).bool())
