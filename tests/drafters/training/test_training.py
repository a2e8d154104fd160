"""From texts to a drafter that guesses: data, states on disk, training that can be stopped."""

from __future__ import annotations

import json
from contextlib import nullcontext
from operator import mul

import pytest
import torch

from drafters.errors import DrafterError
from drafters.heads.folder import HEADS, load_head
from drafters.heads.head import LAST, Head
from drafters.training import states as kept
from drafters.training.data import pieces
from drafters.training.run import Material, train
from drafters.training.states import Drawn, StatesFolder
from drafters.training.trainer import Recipe, Trainer, distilled

PERIOD = [3, 7, 1, 4, 9, 2, 6, 5]


@pytest.fixture
def teacher(lab):
    class Teacher(lab.Target):
        """A target that goes on counting through a period of eight tokens, whatever it is asked."""

        reads = 0

        def encode(self, text):
            return [PERIOD[i % 8] for i in range(len(text.split()))]

        def decode(self, ids):
            return " ".join(map(str, ids))

        def ask(self, text):
            return [0, *self.encode(text)]

        def answers(self, prompts, max_tokens, temperature, seed):
            return [[self.after(prompt[-1], i) for i in range(max_tokens)] for prompt in prompts]

        def after(self, token, i):
            at = PERIOD.index(token) if token in PERIOD else 0
            return PERIOD[(at + 1 + i) % 8]

        def through(self, embedded, positions, seen):
            """Rows that do not see all before them are prompt tokens: k places behind a token one is answered by the
            token k places on, the more so the larger its numbers are than those of any token."""
            length = int((seen.sum(1) == torch.arange(1, len(seen) + 1)).sum())
            tokens = torch.cdist(embedded[:, :length], self._in).argmin(-1)
            at = seen[length:, :length].sum(1) - 1
            right = [
                [self.after(int(t), int(k)) for t, k in zip(row[at], positions[length:] - at, strict=True)]
                for row in tokens
            ]
            larger = embedded[:, length:].mean(-1, keepdim=True) - self._in.mean(-1).max()
            rows = (8 * larger - 1) * self._out[torch.tensor(right)]
            return torch.cat((torch.zeros_like(embedded[:, :length]), rows), 1)

        def states(self, token_ids, layers):
            type(self).reads += 1
            found = super().states(token_ids, layers)
            choices = torch.tensor([self.after(token, 0) for token in token_ids])
            for place, layer in enumerate(layers):
                if layer == LAST:  # of which the output matrix makes the choices
                    found[:, place] = self._out[choices]
            return found, choices

    return Teacher(12)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "text.txt").write_text("word " * 4000)
    (folder / "asked.jsonl").write_text('{"prompt": "what is this"}\n{"turns": ["and this", "then"]}\n')
    return folder


DRAWN = Drawn(length=64)


def trained(name, teacher, corpus, tmp_path, **changes):
    lines = []
    recipe = Recipe(**{"steps": 60, "batch": 4, "length": 48, "learning_rate": 1e-2, "warm_up": 0.1, **changes})
    material = Material((corpus,), 3000, 0.5, DRAWN)
    figures = train(
        name,
        teacher,
        material,
        recipe,
        tmp_path / "out",
        tmp_path / "states",
        lines.append,
        {"draft_vocab": 8, "depth": 3},
    )
    return figures, lines


def test_pieces_are_texts_and_prompts_in_the_shares_asked_for(teacher, corpus):
    made = pieces([corpus], teacher, 3000, 64, 0.5, seed=0)
    asked = [piece for piece in made if piece.asks]
    assert 20 <= len(asked) <= 26
    assert sum(len(piece.token_ids) for piece in made if not piece.asks) == pytest.approx(1500, abs=64)
    assert max(len(piece.token_ids) for piece in asked) <= 32
    assert made == pieces([corpus], teacher, 3000, 64, 0.5, seed=0)
    assert made != pieces([corpus], teacher, 3000, 64, 0.5, seed=1)


def test_a_prompt_that_leaves_no_room_for_an_answer_is_left_out(teacher, tmp_path):
    """Cut it would be another prompt, and without the end of its template none."""
    rows = [{"prompt": "word " * count} for count in (10, 31, 32, 200)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = pieces([tmp_path], teacher, 1000, 64, 1.0, seed=0)
    assert sorted(len(piece.token_ids) for piece in made) == [11, 32]
    (tmp_path / "asked.jsonl").write_text(json.dumps(rows[-1]))
    with pytest.raises(DrafterError, match=r"no prompt of at most 32 tokens in \.jsonl"):
        pieces([tmp_path], teacher, 1000, 64, 1.0, seed=0)


def test_nothing_to_learn_from_is_told(teacher, tmp_path):
    with pytest.raises(DrafterError, match="there is no"):
        pieces([tmp_path / "absent"], teacher, 1000, 64, 0.5, 0)
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(DrafterError, match="nothing to learn from"):
        pieces([tmp_path], teacher, 1000, 64, 0.5, 0)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "fine"}\n[]\n')
    with pytest.raises(DrafterError, match=r"line 2 of .*bad\.jsonl"):
        pieces([tmp_path], teacher, 1000, 64, 0.5, 0)


def test_the_target_runs_once(teacher, corpus, tmp_path):
    made = pieces([corpus], teacher, 1000, 64, 0.5, 0)
    store = StatesFolder(tmp_path, teacher)
    store.of(made[:3], (1,), DRAWN, lambda there, of: None)
    first = type(teacher).reads
    assert first == len(set(made[:3]))
    whole = store.of(made, (1,), DRAWN, lambda there, of: None)
    assert type(teacher).reads == len(set(whole.files))
    store.of(made, (), DRAWN, lambda there, of: None)  # what is there has more layers than are wanted
    assert type(teacher).reads == len(set(whole.files))
    store.of(made[:2], (2,), DRAWN, lambda there, of: None)  # another layer
    assert type(teacher).reads == len(set(whole.files)) + 2
    tokens, choices, found = kept.read(whole.files[3], (1,))
    assert found.shape == (len(tokens), 1, 16)
    expected = teacher.states(tokens.tolist(), (1,))
    torch.testing.assert_close(found, expected[0], atol=1e-3, rtol=1e-3)
    assert (choices == expected[1]).all()


def test_a_damaged_file_is_made_anew_and_a_full_disk_is_told(teacher, corpus, tmp_path, monkeypatch):
    made = pieces([corpus], teacher, 400, 64, 0.0, 0)
    store = StatesFolder(tmp_path, teacher)
    whole = store.of(made, (1,), DRAWN, lambda there, of: None)
    whole.files[0].write_bytes(b"cut off")
    assert store.of(made, (1,), DRAWN, lambda there, of: None).tokens == whole.tokens

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    whole.files[0].unlink()
    monkeypatch.setattr(kept, "save_file", full)
    with pytest.raises(DrafterError, match=r"No space left on device; free some room"):
        store.of(made, (1,), DRAWN, lambda there, of: None)
    assert not list(store.folder.glob("*.part"))


@pytest.mark.parametrize("name", HEADS)
def test_every_member_learns(name, teacher, corpus, tmp_path):
    rate = 0.1 if name in ("ppd", "tidar") else 1e-2
    figures, lines = trained(name, teacher, corpus, tmp_path, steps=60, learning_rate=rate)
    least = 0.7 if name == "medusa" else 0.95  # which knows neither the root nor its guesses
    assert figures["held_out"][0] > least > figures["held_out_before"][0]
    assert figures["held_out_length"] > 1 + 2.5 * least
    assert lines[-1].startswith("step 60")
    head = load_head(tmp_path / "out", teacher)
    assert head.name == name
    assert set(head.vocabulary.tolist()) == set(PERIOD)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"# {name} for tiny" in card
    assert json.loads((tmp_path / "out" / "training.json").read_text())["steps"] == 60


def test_a_token_counts_as_much_as_its_weight(lab, teacher):
    tokens = torch.tensor([[PERIOD[i % 8] for i in range(12)]])
    head, weights = lab.head("hydra"), torch.zeros(1, 12)
    states = teacher.states(tokens[0].tolist(), (*head.config.reads, LAST))[0][None]
    weights[0, 7] = 1

    def loss(**how):
        with torch.no_grad():
            return float(distilled(head, tokens, states, torch.Generator(), **how))

    with torch.no_grad():
        guesses = [g.logits[0, 6 - k] for k, g in enumerate(head.guesses(states[:, :, :-1], tokens, None), 1)]
        wanted = head.lm_head(states[0, 6, -1]).softmax(-1)  # of token 7
    each = [float(-(wanted * guess.log_softmax(-1)).sum()) for guess in guesses]
    shares = [0.8**k for k in range(4)]
    assert loss(weights=weights) == pytest.approx(sum(map(mul, each, shares)) / sum(shares), rel=1e-4)
    assert loss(weights=torch.ones(1, 12)) == pytest.approx(loss(), rel=1e-4)


def test_its_own_states_are_learned_from_in_the_second_half(lab, teacher):
    head, generator = lab.head("eagle3"), torch.Generator()
    tokens = torch.tensor([[PERIOD[i % 8] for i in range(12)]])
    states = teacher.states(tokens[0].tolist(), head.config.reads)[0][None]

    def guesses():
        return len(list(head.guesses(states, tokens, generator)))

    depth = head.config.depth
    head.train()
    assert guesses() == depth  # online learning has no halves
    head.progressed(0.49)
    assert guesses() == 1
    head.eval()
    assert guesses() == depth
    head.train().progressed(0.5)
    assert guesses() == depth


def test_every_training_says_how_far_it_is(teacher, corpus, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(Head, "progressed", lambda self, share: told.append(share))
    trained("medusa", teacher, corpus, tmp_path, steps=4)
    assert told == [0, 0.25, 0.5, 0.75]


def test_a_stopped_training_goes_on_to_the_same_weights(teacher, corpus, tmp_path, monkeypatch):
    through, _ = trained("eagle3", teacher, corpus, tmp_path / "a", steps=12)
    step, done = Trainer._step, 0

    def stops(self, share):
        nonlocal done
        done += 1
        if done == 8:
            self._save()
            raise KeyboardInterrupt
        return step(self, share)

    monkeypatch.setattr(Trainer, "_step", stops)
    with pytest.raises(KeyboardInterrupt):
        trained("eagle3", teacher, corpus, tmp_path / "b", steps=12)
    assert not (tmp_path / "b" / "out" / "model.safetensors").is_file()
    again, _ = trained("eagle3", teacher, corpus, tmp_path / "b", steps=12)
    assert done == 8 + 5
    assert again["held_out"] == through["held_out"]
    one, other = ((tmp_path / part / "out" / "model.safetensors").read_bytes() for part in "ab")
    assert one == other


def test_a_stopped_training_keeps_its_arithmetic(teacher, corpus, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(Trainer, "_arithmetic", lambda self: used.append(self._half) or nullcontext())
    monkeypatch.setattr("drafters.training.trainer._multiplies_bfloat16", lambda: True)
    trained("medusa", teacher, corpus, tmp_path, steps=2)
    monkeypatch.setattr("drafters.training.trainer._multiplies_bfloat16", lambda: False)
    trained("medusa", teacher, corpus, tmp_path, steps=4)
    assert set(used) == {True}
    checkpoint = tmp_path / "out" / "training.pt"
    kept = torch.load(checkpoint, weights_only=True)
    del kept["half"]
    torch.save(kept, checkpoint)
    used.clear()
    trained("medusa", teacher, corpus, tmp_path, steps=6)
    assert set(used) == {False}


def test_other_options_do_not_take_up_a_training(teacher, corpus, tmp_path):
    trained("medusa", teacher, corpus, tmp_path, steps=3)
    with pytest.raises(DrafterError, match="other options"):
        trained("medusa", teacher, corpus, tmp_path, steps=3, learning_rate=1e-3)
    checkpoint = tmp_path / "out" / "training.pt"
    checkpoint.write_bytes(b"damaged")
    with pytest.raises(DrafterError, match="damaged"):
        trained("medusa", teacher, corpus, tmp_path, steps=3)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("drafters.training.trainer.torch.save", "training cannot be kept in"),
        ("drafters.training.run.save_head", "cannot be written to .*the training is kept"),
    ],
)
def test_a_disk_that_is_full_at_the_end_is_told_and_loses_nothing(what, said, teacher, corpus, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(what, full)
        with pytest.raises(DrafterError, match=said):
            trained("medusa", teacher, corpus, tmp_path, steps=4)
    assert not list((tmp_path / "out").glob("*.part"))
    figures, _ = trained("medusa", teacher, corpus, tmp_path, steps=4)
    assert figures["steps"] == 4
    assert load_head(tmp_path / "out", teacher).name == "medusa"


def test_a_folder_of_something_else_is_left_alone(teacher, corpus, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(DrafterError, match="holds something else: name another output"):
        trained("medusa", teacher, corpus, tmp_path, steps=1)


def test_bad_wishes_are_refused(teacher, corpus, tmp_path):
    with pytest.raises(DrafterError, match="no trained drafter 'mamba'; there are chimera"):
        trained("mamba", teacher, corpus, tmp_path)
    with pytest.raises(DrafterError, match="steps or minutes"):
        trained("medusa", teacher, corpus, tmp_path, steps=0)
    with pytest.raises(DrafterError, match="no such option"):
        train(
            "medusa",
            teacher,
            Material((corpus,), 400, 0.5, DRAWN),
            Recipe(steps=1),
            tmp_path / "out",
            tmp_path / "states",
            print,
            {"blobs": 3},
        )
