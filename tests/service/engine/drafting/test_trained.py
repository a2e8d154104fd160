"""Trained drafters in the engine: their states come from its forwards, and nothing changes but their number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from drafters.heads.folder import HEADS, load_head, save_head
from drafters.heads.head import LAST
from drafters.machine_profile import MachineProfile
from drafters.models.riding import Riders
from drafters.training.plain import PlainTarget
from service.engine.async_engine import AsyncEngine
from service.engine.config import EngineConfig
from service.engine.drafting.target import TargetView
from service.engine.drafting.teacher import EngineTeacher
from service.engine.engine import Engine
from service.engine.loading.checkpoint import load_model, prepare
from service.engine.params import SamplingParams
from service.engine.request import Reading
from service.engine.sampling.grammars import Constraint
from service.errors import ModelError

from ..conftest import FAMILIES, generate, make_engine, make_model
from .test_drafting import PENALTIES, prompt

JSON = Constraint("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}}')


def head_for(folder: Path, name: str, family: str = "llama", **options: Any) -> str:
    """A folder with a head of random weights for `make_model`'s."""
    target = TargetView(prepare(family, make_model(family)))
    torch.manual_seed(2)
    head = HEADS[name](HEADS[name].configure(target, draft_vocab=60, **options), target)
    head.choose_vocabulary(torch.arange(20, 80), target)
    save_head(head, folder / name)
    return str(folder / name)


def engine_with(folder: str, family: str = "llama", dtype: torch.dtype = torch.float64, **options: Any) -> Engine:
    config = {"page_size": 16, "step_tokens": 64, "kv_memory": 8 << 20, "dtype": str(dtype).removeprefix("torch.")}
    return Engine(
        prepare(family, make_model(family, dtype=dtype)), EngineConfig(**config | options, draft_model=folder)
    )


ALONE, FUSED = "trained:min_score=0,paced=false,forwards=3", "fusion:model=trained,always=true"


def answers(engine: Engine, drafter: str) -> list[Any]:
    """In a batch, greedy and sampled, under penalties and none, on prompts of several chunks."""
    each = [
        SamplingParams(max_tokens=16, temperature=t, seed=i, drafter=drafter, ignore_eos=True, **changes)
        for i, (t, changes) in enumerate([(0.0, {}), (0.8, {}), (0.8, PENALTIES), (0.0, PENALTIES)])
    ]
    return generate(engine, [prompt(i) for i in range(4)], each)


@pytest.fixture(scope="module")
def plain() -> list[list[int]]:
    """The tokens of plain decoding."""
    return [r.token_ids for r in answers(make_engine(), "none")]


@pytest.mark.parametrize(
    ("name", "drafter"), [*((name, ALONE) for name in HEADS), *((name, FUSED) for name in HEADS), ("eagle3", "auto")]
)
def test_the_tokens_are_those_of_plain_decoding(
    name: str, drafter: str, tmp_path: Path, plain: list[list[int]]
) -> None:
    engine = engine_with(head_for(tmp_path, name))
    drafted = answers(engine, drafter)
    assert [r.token_ids for r in drafted] == plain
    assert not any(r.stats["drafting"]["failures"] for r in drafted)
    if drafter != "auto":  # which guesses where it pays on this machine
        assert sum(r.stats["drafting"]["by_source"].get(name, {"drafted": 0})["drafted"] for r in drafted) > 0
    engine.check_integrity()


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_transformers(family: str) -> None:
    """Of any layer, whatever the chunks; in the families whose layers run in one call and in the others."""
    engine, ids = make_engine(family), prompt(3)
    model = make_model(family)
    count = model.config.num_hidden_layers
    layers = (0, 1, count, LAST)
    seen = torch.full((len(ids), len(layers), model.config.hidden_size), torch.nan, dtype=torch.float64)

    def keep(start: int, states: torch.Tensor) -> None:
        seen[start : start + len(states)] = states

    with AsyncEngine(engine) as door:
        door.read(ids, Reading(on_chunk=keep, layers=layers), attention="dense")
    into: dict[int, torch.Tensor] = {}
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(
            lambda _m, args, kwargs, number=number: into.update({number: (*args, kwargs.get("hidden_states"))[0]}),
            with_kwargs=True,
        )
    model.model.layers[-1].register_forward_hook(lambda _m, _i, out: into.update({count: out}))
    with torch.inference_mode():
        last = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    for place, layer in enumerate(layers[:-1]):
        found = into[layer] if isinstance(into[layer], torch.Tensor) else into[layer][0]
        assert (seen[:, place] - found[0]).abs().max() < 1e-6 * found.abs().max()
    assert (seen[:, -1] - last).abs().max() < 1e-6 * last.abs().max()


def test_layers_in_one_call_show_the_states_of_the_modules() -> None:
    """In float32, where they run fused; nothing changes in the tokens."""
    ids = prompt(1)[:40]
    seen: dict[str, list[torch.Tensor]] = {"fused": [], "modules": []}
    for way, kept in seen.items():
        engine = Engine(
            prepare("llama", make_model(dtype=torch.float32)),
            EngineConfig(dtype="float32", page_size=16, step_tokens=16, kv_memory=8 << 20, max_running=4),
        )
        if way == "modules":
            engine.loaded.model.model.layers[0].register_forward_hook(lambda *_: None)
        with AsyncEngine(engine) as door:
            reading = Reading(on_chunk=lambda _start, states, kept=kept: kept.append(states), layers=(0, 2, 3))
            door.read(ids, reading, attention="dense")
    assert torch.equal(*(torch.cat(parts) for parts in seen.values()))


@pytest.mark.parametrize("name", ["ppd", "tidar"])
def test_prompt_tokens_are_run_as_they_were_trained(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the text that was accepted, whatever ran beside them: what transformers makes of their embeddings
    there."""
    folder, plain = head_for(tmp_path, name), PlainTarget("llama", make_model())
    seen: list[tuple[list[int], torch.Tensor]] = []
    observe = Riders.observe

    def kept(riders: Riders, state: Any, tree: Any, verdict: Any) -> None:
        observe(riders, state, tree, verdict)
        if len(verdict.tokens) > len(verdict.path):  # the last step may be cut short
            seen.append((state.tokens[:-1], riders.shallow((), (), 0)))

    monkeypatch.setattr(Riders, "observe", kept)
    monkeypatch.setattr(MachineProfile, "ready", False)  # else times decide how many ride
    params = SamplingParams(max_tokens=12, drafter=ALONE, ignore_eos=True)
    found = generate(engine_with(folder), [prompt(0), prompt(1)], params)
    assert sum(r.stats["drafting"]["by_source"][name]["drafted"] for r in found) > 20
    prompts = load_head(folder, TargetView(prepare("llama", make_model()))).prompts
    assert prompts is not None
    assert sum(len(states) for _, states in seen) > 15
    for tokens, states in seen:
        behind = len(tokens)
        sees = torch.ones(behind + 3, behind + 3, dtype=torch.bool).tril()
        if name == "tidar":
            sees[behind:, behind:] = True
        with torch.inference_mode():
            embedded = torch.cat((plain.embed(torch.tensor(tokens)), prompts.double()))[None]
            out = plain.through(embedded, torch.arange(behind + 3), sees)[0, behind:]
        torch.testing.assert_close(states, out[: len(states)].float(), atol=1e-4, rtol=1e-4)


def test_the_window_of_a_cached_prompt_is_computed_again(tmp_path: Path) -> None:
    engine = engine_with(head_for(tmp_path, "eagle3", window=40))
    ids = prompt(0)

    def cached(drafter: str) -> int:
        params = SamplingParams(max_tokens=2, drafter=drafter, ignore_eos=True)
        return generate(engine, [ids], params)[0].stats["cached_tokens"]  # type: ignore[no-any-return]

    assert cached("none") == 0
    assert cached("none") == 80
    assert cached("trained") == 48
    assert cached("suffix") == 80


def test_a_request_that_was_preempted_goes_on(tmp_path: Path) -> None:
    engine = engine_with(head_for(tmp_path, "eagle3", window=40), kv_memory=engine_memory())
    prompts = [prompt(i)[:64] for i in range(3)]

    def run(drafter: str) -> list[Any]:
        params = SamplingParams(max_tokens=40, temperature=0.8, drafter=drafter, ignore_eos=True)
        return generate(engine, prompts, params)

    plain, drafted = run("none"), run(ALONE)
    assert sum(r.stats["preemptions"] for r in drafted) > 0
    assert [r.token_ids for r in drafted] == [r.token_ids for r in plain]
    assert not any(r.stats["drafting"]["failures"] for r in drafted)


def engine_memory(pages: int = 13) -> int:
    """Room for so many pages of the tiny Llama in float64."""
    return pages * 16 * 2 * 3 * 2 * 16 * 8


def test_a_constrained_answer(tmp_path: Path) -> None:
    loaded = load_model("embedded")
    target = TargetView(loaded)
    head = HEADS["eagle3"](HEADS["eagle3"].configure(target), target)
    head.share(target)
    save_head(head, tmp_path / "head")
    engine = Engine(loaded, EngineConfig(kv_memory=64 << 20, draft_model=str(tmp_path / "head")))
    ids = loaded.tokenizer.encode("A number, as JSON:")
    found = [
        generate(engine, [ids], SamplingParams(max_tokens=24, drafter=name, constraint=JSON))[0]
        for name in ("none", ALONE)
    ]
    assert found[0].token_ids == found[1].token_ids
    assert found[1].stats["drafting"]["drafted"] > 0


def test_a_version_that_learned_guesses_with_packed_weights(tmp_path: Path) -> None:
    loaded = load_model("embedded", weights="int8")
    target = TargetView(loaded)
    made = HEADS["eagle3"](HEADS["eagle3"].configure(target), target)
    made.share(target)
    save_head(made, tmp_path / "head")
    engine = Engine(loaded, EngineConfig(kv_memory=64 << 20, draft_model=str(tmp_path / "head")))
    resources = engine.drafting.resources
    assert resources.packing is not None
    plain = resources.packing.plain()
    version = resources.packing.pack(plain)
    layers = [module for module in version.modules() if isinstance(module, torch.nn.Linear)]
    assert (layers, version.lm_head) == ([], resources.head.lm_head)
    assert isinstance(plain.lm_head, torch.nn.Linear)
    states, tokens = torch.randn(5, len(made.config.reads), made.hidden_size), torch.arange(300, 305)
    with torch.inference_mode():
        guesses = [head.begin().follow(states, tokens, 0) for head in (resources.head, version)]
    assert torch.equal(*guesses)


def test_a_head_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = head_for(tmp_path, "medusa")
    with pytest.raises(ModelError, match="was made for llama, whose weights are others"):
        Engine(
            prepare("other", make_model(seed=1)),
            EngineConfig(dtype="float64", page_size=16, kv_memory=8 << 20, draft_model=folder),
        )


def test_a_model_that_is_shared_by_processes_is_refused() -> None:
    loaded = prepare("llama", make_model())
    loaded.ranks = object()  # type: ignore[assignment]
    with pytest.raises(ModelError, match="needs the whole model in one process"):
        TargetView(loaded)


def test_the_teacher_reads_and_answers() -> None:
    engine = Engine(load_model("embedded"), EngineConfig(kv_memory=64 << 20, drafter="none"))
    with AsyncEngine(engine) as door:
        teacher = EngineTeacher(door)
        ids = teacher.encode("The quick brown fox jumps over the lazy dog.")
        [answer] = teacher.answers([ids], 12, 0.0, 0)
        states, choices = teacher.states([*ids, *answer], (1, LAST))
    assert states.shape == (len(ids) + len(answer), 2, teacher.hidden_size)
    assert choices[len(ids) - 1 : -1].tolist() == answer
    rows = teacher.output_rows(torch.arange(teacher.vocab_size))
    assert (states[:, 1] @ rows.T).argmax(-1).tolist() == choices.tolist()
    text = torch.tensor([*ids, *answer])
    embedded = teacher.embed(text)[None].requires_grad_()
    through = teacher.through(
        embedded, torch.arange(len(text)), torch.ones(len(text), len(text), dtype=torch.bool).tril()
    )
    torch.testing.assert_close(through[0], states[:, 1], atol=1e-3, rtol=1e-3)
    through[0, 5].sum().backward()
    assert embedded.grad is not None
    assert (embedded.grad[0].abs().sum(-1) > 0).tolist() == [True] * 6 + [False] * (len(text) - 6)
