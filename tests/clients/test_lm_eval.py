"""lm-evaluation-harness over /v1/completions: its scores are transformers' own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from service.reader import MODEL_DIR

LM_EVAL = "lm-evaluation-harness"
QUESTIONS = [
    {"question": "The colour of a clear sky is", "choices": ["blue", "green", "square"], "answer": 0},
    {"question": "Two and two make", "choices": ["five", "four"], "answer": 1},
    {"question": "Naïve café — ½ £5: the bridge was built in", "choices": ["1862", "a spoon", "日本"], "answer": 0},
    {"question": "A mill grinds", "choices": ["corn", "music", "the parish of Hampton"], "answer": 0},
]
COMMON = """
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
doc_to_text: "{{{{question}}}}"
"""
TASKS = {
    "folio_choice": COMMON
    + """
task: folio_choice
output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
""",
    "folio_rolling": """
task: folio_rolling
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: word_perplexity
""",
    "folio_generate": COMMON
    + """
task: folio_generate
output_type: generate_until
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 8
  temperature: 0
metric_list:
  - metric: exact_match
""",
}


@pytest.fixture(scope="module")
def scored_service(start: Callable[..., Any]) -> Any:
    """The packaged model in float32, whose checkpoint transformers reads too."""
    return start(model="embedded", dtype="float32", weights="plain")


@pytest.fixture
def samples(
    client_env: Callable[..., Any], scored_service: Any, tmp_path: Path
) -> Callable[[str], list[dict[str, Any]]]:
    """Runs a task and gives what lm_eval logged of each of its questions."""
    environment = client_env("lm_eval[api]", "transformers", client=LM_EVAL)
    data = tmp_path / "questions.json"
    data.write_text("\n".join(json.dumps(one) for one in QUESTIONS))

    def run(task: str) -> list[dict[str, Any]]:
        (tmp_path / f"{task}.yaml").write_text(TASKS[task].format(data=data))
        options = {
            "model": scored_service.model,
            "base_url": f"{scored_service.base}/completions",
            "tokenizer": str(MODEL_DIR),
            "num_concurrent": 2,
            "max_length": 2048,
        }
        command = ["lm_eval", "--model", "local-completions", "--tasks", task, "--include_path", str(tmp_path)]
        command += ["--model_args", ",".join(f"{name}={value}" for name, value in options.items())]
        command += ["--log_samples", "--output_path", str(tmp_path / "out")]
        home = {"HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1"}
        environment.run(command, {"OPENAI_API_KEY": scored_service.key, **home})
        (logged,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        return sorted(map(json.loads, logged.read_text().splitlines()), key=lambda one: one["doc_id"])

    return run


@pytest.fixture(scope="module")
def loglikelihood() -> Callable[[str, str], tuple[float, bool]]:
    """transformers' log-probability of a text behind another, and whether it is the likeliest."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()

    def of(context: str, continuation: str) -> tuple[float, bool]:
        before = tokenizer(context, add_special_tokens=False).input_ids
        ids = tokenizer(context + continuation, add_special_tokens=False).input_ids
        if not before:  # then the harness begins with the token that begins, or else ends, a text
            before = [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]
            ids = before + ids
        with torch.inference_mode():
            rows = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)[len(before) - 1 : -1]
        targets = ids[len(before) :]
        return float(rows[range(len(targets)), targets].sum()), rows.argmax(-1).tolist() == targets

    return of


@pytest.mark.clients(LM_EVAL, "loglikelihood (multiple choice, equal to transformers within 1e-4)")
def test_multiple_choice(
    samples: Callable[[str], Any], loglikelihood: Callable[[str, str], tuple[float, bool]]
) -> None:
    found = samples("folio_choice")
    assert len(found) == len(QUESTIONS)
    for sample, asked in zip(found, QUESTIONS, strict=True):
        expected = [loglikelihood(asked["question"], f" {choice}") for choice in asked["choices"]]
        for (given, greedy), (own, own_greedy) in zip(sample["filtered_resps"], expected, strict=True):
            assert float(given) == pytest.approx(own, abs=1e-4)
            assert str(greedy) == str(own_greedy)


@pytest.mark.clients(LM_EVAL, "loglikelihood_rolling")
def test_rolling(samples: Callable[[str], Any], loglikelihood: Callable[[str, str], tuple[float, bool]]) -> None:
    for sample, asked in zip(samples("folio_rolling"), QUESTIONS, strict=True):
        (given,) = sample["filtered_resps"]
        value = given[0] if isinstance(given, list) else given
        assert float(value) == pytest.approx(loglikelihood("", asked["question"])[0], abs=1e-4)


@pytest.mark.clients(LM_EVAL, "generate_until")
def test_generation(samples: Callable[[str], Any]) -> None:
    found = samples("folio_generate")
    assert all(isinstance(sample["filtered_resps"][0], str) for sample in found)
    assert any(sample["filtered_resps"][0].strip() for sample in found)
