"""The adapter for lm-evaluation-harness scores as transformers does; the harness is stood in for by a base class."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from service.reader import MODEL_DIR

QUESTIONS = [
    ("The colour of a clear sky is", [" blue", " green", " square"]),
    ("Two and two make ", ["five", "four"]),
    ("Naïve café — ½ £5: the bridge was built in", [" 1862", " a spoon", " 日本"]),
    ("", ["A mill grinds corn"]),
]


@pytest.fixture(scope="module")
def adapter() -> Any:
    """The class, over the packaged model in float32."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry"):
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["lm_eval.api.model"].LM = object  # type: ignore[attr-defined]
        sys.modules["lm_eval.api.registry"].register_model = lambda name: lambda cls: cls  # type: ignore[attr-defined]
        from eval.lm_eval import FolioLM

        made = FolioLM("embedded", dtype="float32", weights="plain", max_model_len=2048, batch_size=1)
        yield made
        made.close()
        sys.modules.pop("eval.lm_eval")


@pytest.fixture(scope="module")
def theirs() -> Any:
    """transformers' log-probability of ids behind others, and whether they are the likeliest."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()

    def of(before: list[int], after: list[int]) -> tuple[float, bool]:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([before + after])).logits[0]
        rows = logits.double().log_softmax(-1)[len(before) - 1 : -1]
        return float(rows[range(len(after)), after].sum()), rows.argmax(-1).tolist() == after

    return of


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def test_a_multiple_choice_task_is_scored_as_by_transformers(adapter: Any, theirs: Any) -> None:
    pairs = [(question, choice) for question, choices in QUESTIONS for choice in choices]
    found = adapter.loglikelihood([asked(*pair) for pair in pairs])
    for (question, choice), (given, greedy) in zip(pairs, found, strict=True):
        before = adapter._ids(question.rstrip()) or [adapter._prefix()]
        whole = adapter._ids(question + choice)
        expected, likeliest = theirs(before, whole[len(before) if question else 0 :])
        assert given == pytest.approx(expected, abs=1e-4)
        assert greedy == likeliest


def test_a_text_longer_than_the_window_is_scored_once_a_token(adapter: Any, theirs: Any, monkeypatch: Any) -> None:
    text = "The mill by the river ground corn for the parish. " * 6
    ids = [adapter._prefix(), *adapter._ids(text)]
    [whole] = adapter.loglikelihood_rolling([asked(text)])
    assert whole == pytest.approx(theirs(ids[:1], ids[1:])[0], abs=1e-3)
    monkeypatch.setattr(type(adapter._engine), "window", 33)
    [cut] = adapter.loglikelihood_rolling([asked(text)])
    expected = sum(
        theirs(ids[max(0, end - 33) : start], ids[start:end])[0]
        for start in range(1, len(ids), 32)
        for end in [min(start + 32, len(ids))]
    )
    assert cut == pytest.approx(expected, abs=1e-3)
    assert cut < whole, "with less to go by"


def test_answers_end_before_their_stops(adapter: Any) -> None:
    first, short = adapter.generate_until(
        [asked("The mill", {"until": [" "], "max_gen_toks": 12}), asked("The mill", {"until": "", "max_gen_toks": 3})]
    )
    assert " " not in first
    assert len(adapter._ids(short)) <= 3
