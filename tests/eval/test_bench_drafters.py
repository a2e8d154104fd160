"""The drafters' benchmark, on a model small enough to run in seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from drafters.heads.folder import HEADS, save_head
from drafters.models.pacing import Pace
from drafters.training import online
from drafters.training.distill import DISTILLATION
from eval.bench.drafting import online as bench_online
from eval.bench.drafting.drafters import Options, beside, file_name, measure, run
from eval.bench.drafting.prompts import make_prompts, quoted
from eval.bench.drafting.timing import perturbed_gap
from eval.errors import EvalError
from service.engine.async_engine import AsyncEngine
from service.engine.drafting.target import TargetView
from service.engine.loading.checkpoint import load_model
from service.engine.outputs import Generation
from service.engine.params import SamplingParams


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, random_llama) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    random_llama(intermediate_size=48, pad_token_id=0, eos_token_id=2).save_pretrained(folder)
    return folder


def measured(checkpoint, known=None, save=lambda figures: None, **changes):
    options = {
        "context": (192,),
        "workload": ("nothing",),
        "drafter": ("auto", "suffix"),
        "batch": (1, 3),
        "prompts": 2,
        "max_tokens": 12,
        "rounds": 2,
        "kv_memory": 1 << 24,
    }
    return run(Options(model=str(checkpoint), **(options | changes)), known, save)


@pytest.fixture
def engine(checkpoint):
    with AsyncEngine.from_pretrained(str(checkpoint), kv_memory=1 << 24, attention="dense") as engine:
        yield engine


def test_cells_hold_every_drafter_to_plain_decoding(checkpoint, monkeypatch):
    monkeypatch.setattr("eval.bench.drafting.drafters._CLOSE", 0.0)  # all are nearly as fast as the fastest
    figures = measured(checkpoint, rounds=1)
    assert len(figures["cells"]) == 2 * 2 * 3
    for cell in figures["cells"]:
        assert cell["tokens_per_s"] > 0
        assert (cell["max_tokens"], cell["rounds"]) == (12, 1 if cell["drafter"] == "none" else 5)
        if cell["drafter"] != "none":
            assert cell["identical"], cell
            assert cell["divergences"] == []
            assert cell["failures"] == 0
            assert cell["accepted_length"] >= 1.0
    rows = figures["forwards"][0]["rows"]
    assert [row["nodes"] for row in rows] == [0, 8, 32]
    for row in rows:
        assert row["seconds"] >= row["least_seconds"] > 0
        assert row["over_kv_limit"] >= row["over_limit"] > 0
        assert row["limit_s"] > 0


@pytest.mark.slow
def test_drafters_of_a_draft_model_take_part(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(Pace, "asks", lambda pace: True)  # such a draft model is never worth its time
    shutil.copytree(checkpoint, tmp_path / "draft")
    (tmp_path / "draft" / DISTILLATION).write_text('{"tokens_of_text": 7}')
    # a random model is sure of nothing
    names = ("draft_model:min_score=0,branching=1", "adaptive:min_score=0,stop=1", "multi_round:branching=1")
    figures = measured(
        checkpoint, draft_model=str(tmp_path / "draft"), drafter=names, temperature=(0.0,), batch=(1,), rounds=1
    )
    assert figures["distillation"] == {"tokens_of_text": 7}
    assert [cell["drafter"] for cell in figures["cells"]] == ["none", *names]
    for cell in figures["cells"][1:]:
        assert cell["identical"], cell
        assert cell["failures"] == 0
        assert cell["acceptance_rate"] > 0.5, cell  # the draft model is the target


@pytest.fixture
def head(checkpoint, tmp_path):
    """A drafter that was never trained, kept in `tmp_path`."""
    target = TargetView(load_model(str(checkpoint)))
    head = HEADS["eagle3"](HEADS["eagle3"].configure(target), target)
    head.share(target)
    save_head(head, tmp_path)
    return head


def test_a_trained_drafter_is_named_in_its_cells(checkpoint, head, tmp_path):
    (tmp_path / "training.json").write_text('{"minutes": 30}')
    names = ("trained:paced=false,min_score=0",)
    figures = measured(checkpoint, draft_model=str(tmp_path), drafter=names, temperature=(0.0,), batch=(1,), rounds=1)
    plain, trained = figures["cells"]
    assert figures["training"] == {tmp_path.name: {"minutes": 30}}
    assert (plain["head"], trained["head"], trained["window"]) == ("eagle3", "eagle3", 256)
    assert trained["parameters"] == head.num_parameters > 1000
    assert trained["identical"], trained
    assert trained["by_source"]["eagle3"]["drafted"] > 0
    assert trained["by_position"]["1"]["drafted"] >= trained["by_position"]["2"]["drafted"]
    asked = Options(only="trained", draft_model=str(tmp_path))
    assert file_name(asked, figures) == "drafters_trained", "the table of all drafters is another file"


def test_what_learns_while_it_serves_stands_beside_what_does_not(checkpoint, head, tmp_path, monkeypatch):
    lessons = []
    monkeypatch.setattr(online.OnlineHead, "take", lambda self, lesson, seconds: lessons.append(lesson) is not None)
    groups = {"draft_model": tmp_path, "workload": ("nothing", "nothing"), "prompts": 4, "max_tokens": 24}
    figures = bench_online.run(bench_online.Options(model=str(checkpoint), context=128, **groups))
    assert [(row["half"], row["answers"]) for row in figures["rows"]] == [("first", 2), ("second", 2)] * 2
    assert all(row["identical"] for row in figures["rows"])
    assert figures["head"] == "eagle3"
    assert len(lessons) == 8, "an answer of the one that learns is a lesson, no other"


def test_the_table_of_trained_drafters_wants_one():
    with pytest.raises(EvalError, match="with the folder of a trained drafter"):
        measure(Options(only="trained"))


@pytest.mark.slow
def test_pieces_make_the_same_table(checkpoint):
    saved = []
    first = measured(
        checkpoint, batch=(1,), temperature=(0.0,), save=lambda figures: saved.append(len(figures["cells"]))
    )
    assert saved == [0, 3]  # the forwards, and one place of cells
    kept = first["cells"][1]["tokens_per_s"]
    second = measured(checkpoint, batch=(1,), known=first)
    assert [(c["temperature"], c["drafter"]) for c in second["cells"]] == [
        (temperature, name) for temperature in (0.0, 0.8) for name in ("none", "auto", "suffix")
    ]
    assert second["cells"][1]["tokens_per_s"] == kept
    assert len(second["forwards"]) == 1
    stopped = measured(checkpoint, batch=(1, 3), known=second, limit=0.0)
    assert len(stopped["cells"]) == 6


@pytest.mark.slow
def test_forwards_are_measured_without_cells_too(checkpoint):
    figures = measured(checkpoint, context=(128, 192), limit=0.0)
    assert figures["cells"] == []
    assert [one["context"] for one in figures["forwards"]] == [128, 192]


def test_transformers_prompt_lookup_answers_the_same_prompts(engine):
    asked = [[*range(3, 60), 3, 4, n] for n in (5, 9)]
    figures = beside(engine, asked, max_tokens=8, stops=False, rounds=1)
    assert set(figures["tokens_per_s"]) == {"transformers", "transformers_prompt_lookup", "prompt_lookup", "auto"}
    assert min(figures["tokens_per_s"].values()) > 0


def test_gap_is_that_of_the_perturbed_scores(engine):
    prompt = list(range(3, 40))
    greedy = SamplingParams(max_tokens=1, ignore_eos=True, drafter="none")
    best = engine.generate([prompt], greedy)[0].token_ids[0]
    other = (best + 1) % 64
    gap = perturbed_gap(engine, prompt, best, other, greedy, 0)
    assert gap is None or gap > 0
    for seed in range(5):
        sampled = SamplingParams(max_tokens=1, temperature=0.8, seed=seed, ignore_eos=True, drafter="none")
        chosen = engine.generate([prompt], sampled)[0].token_ids[0]
        gap = perturbed_gap(engine, prompt, chosen, other, sampled, seed)
        assert chosen == other or gap is None or gap > 0


def test_quoting_is_one_passage_word_for_word():
    prompt = [9, 1, 2, 3, 4, 9, 5, 6]
    assert quoted(prompt, [1, 2, 3]) == 1.0
    assert quoted(prompt, [7, 2, 3, 4]) == 0.75
    assert quoted(prompt, [1, 2, 5, 6]) == 0.5
    assert quoted(prompt, [7, 8]) == 0.0


def test_workloads_keep_the_prompts_that_suit_them(engine, monkeypatch, tmp_path):
    """Of answers made to measure, `quoting` and `nothing` keep opposite ones, in their order."""
    prompts = [[*range(3, 40), n] for n in range(6)]
    monkeypatch.setattr("eval.bench.drafting.prompts.questions", lambda layout, context, count, text: prompts)
    monkeypatch.setattr("eval.bench.drafting.prompts.layout_for", lambda *_, **__: None)
    monkeypatch.setattr("eval.bench.drafting.prompts._random", lambda engine, context, count: prompts)
    answers = {n: [5, 6, 7, 8] if n % 2 else [60, 62, 61, 63] for n in range(6)}

    def generate(asked, params):
        return [Generation(answers[ids[-1]], "", "stop", {}, None, []) for ids in asked]

    monkeypatch.setattr(engine, "generate", generate)
    kept = {name: make_prompts(engine, name, 128, 3, tmp_path, tmp_path) for name in ("quoting", "nothing")}
    assert [ids[-1] for ids in kept["quoting"].ids] == [1, 3, 5]
    assert [ids[-1] for ids in kept["nothing"].ids] == [0, 2, 4]
    assert kept["quoting"].chosen_from == 6
    assert make_prompts(engine, "questions", 128, 3, tmp_path, tmp_path).chosen_from == 0


def test_unknown_workloads_and_missing_files_are_named(engine, tmp_path):
    with pytest.raises(EvalError, match="unknown workload"):
        make_prompts(engine, "other", 128, 2, tmp_path, tmp_path)
    for workload in ("spec_bench", "chat", "category:writing"):
        with pytest.raises(EvalError, match="there is no"):
            make_prompts(engine, workload, 128, 2, tmp_path, tmp_path / "none.jsonl")
