"""``folio calibrate``: its files are those that the policies read, and its errors name the input."""

import json
from types import SimpleNamespace

import pytest

from eval.calibrate import run
from eval.errors import EvalError
from service.engine.options import parse_policy
from sparse_attn.plan.policy import ModelShape


@pytest.fixture(scope="module")
def loaded(random_llama):
    tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: [min(ord(c), 255) for c in text])
    return SimpleNamespace(
        name="tiny",
        model=random_llama(vocab_size=256, max_position_embeddings=2048),
        tokenizer=tokenizer,
        max_len=2048,
        fingerprint="f",
    )


def test_the_files_are_what_the_policies_read(loaded, tmp_path):
    report = run(loaded, output=tmp_path, length=640, budget=256, sink=16, local=32)
    shape = ModelShape.of_config(loaded.model.config)
    parse_policy(f"minference:file={tmp_path / 'minference.json'}").check(shape)
    lserve = parse_policy(f"lserve:heads={tmp_path}/duo.tsv")
    lserve.check(shape)
    streaming = lserve.head_groups(shape).streaming
    assert sum(map(len, streaming)) == 2
    alpha = {(n, h): a for n, layer in enumerate(report["layers"]) for h, a in enumerate(layer["alpha"])}
    chosen = [alpha[n, h] for n, heads in enumerate(streaming) for h in heads]
    assert max(chosen) <= min(a for at, a in alpha.items() if at[1] not in streaming[at[0]])
    assert json.loads((tmp_path / "report.json").read_text())["layers"] == report["layers"]
    assert [(tmp_path / name).stat().st_size > 1000 for name in report["pictures"]] == [True, True]
    assert json.loads((tmp_path / "config.json").read_text()) == {"sink_size": 16, "recent_size": 32}


def test_gates_can_be_trained_instead(loaded, tmp_path):
    report = run(loaded, output=tmp_path, length=512, budget=256, gates=2, pictures=False)
    assert report["alpha_from"] == "trained gates"
    assert all(0 <= alpha <= 1 for layer in report["layers"] for alpha in layer["alpha"])
    assert "pictures" not in report


def test_what_cannot_be_calibrated_is_said(loaded, tmp_path):
    with pytest.raises(EvalError, match="The text has 5 tokens"):
        run(loaded, output=tmp_path, text="short")
    loaded = SimpleNamespace(**{**vars(loaded), "tokenizer": None})
    with pytest.raises(EvalError, match="'tiny' has no tokenizer"):
        run(loaded, output=tmp_path)
