"""A checkpoint's own Python never runs, and nobody is asked whether it may."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from service.engine.engine import Engine
from service.engine.loading.checkpoint import load_model, load_tokenizer
from service.errors import ModelError

from ..conftest import make_model

REFUSED = "wants to run Python of its own, which Folio never does"


@pytest.fixture(autouse=True)
def _nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file that the checkpoint's Python would write."""
    return tmp_path / "ran"


def with_own_python(folder: Path, ran: Path, file: str) -> None:
    """Put a module into a checkpoint which leaves a trace where it is imported."""
    text = f"open({str(ran)!r}, 'w').close()\nfrom transformers import LlamaConfig as Own, LlamaForCausalLM as Model\n"
    (folder / f"{file}.py").write_text(text)


@pytest.fixture
def own_model(tmp_path: Path, ran: Path) -> Path:
    folder = tmp_path / "own"
    make_model(dtype=torch.float32).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with_own_python(folder, ran, "own")
    return folder


def test_the_command_refuses_at_once_with_a_pipe_as_its_stdin(own_model: Path, ran: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text("[1, 2]")
    command = [sys.executable, "-m", "service.cli", "generate", "--model", str(own_model), "--prompt-ids", str(ids)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            code = process.wait(timeout=120)  # its stdin stays open: a question would wait for ever
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail("it waits")
        said = process.stderr.read() if process.stderr else ""
    assert code == 1
    assert REFUSED in said
    assert "[y/N]" not in said
    assert not ran.exists()


def test_a_model(own_model: Path, ran: Path) -> None:
    began = time.perf_counter()
    with pytest.raises(ModelError, match=REFUSED):
        load_model(str(own_model))
    assert time.perf_counter() - began < 5
    assert not ran.exists()


def test_a_type_that_transformers_has_is_loaded_by_its_own_class(own_model: Path, ran: Path) -> None:
    config = json.loads((own_model / "config.json").read_text())
    (own_model / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    assert type(load_model(str(own_model)).model).__module__.startswith("transformers.models.llama")
    assert not ran.exists()


def test_a_draft_model(own_model: Path, ran: Path, tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=REFUSED):
        Engine.from_pretrained(str(tiny_model), draft_model=str(own_model), kv_memory=8 << 20)
    assert not ran.exists()


def test_a_tokenizer(folder: Path, ran: Path) -> None:
    said = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    with_own_python(folder, ran, "own")
    with pytest.raises(ModelError, match=REFUSED):
        load_tokenizer(str(folder))
    with pytest.raises(ModelError, match=REFUSED):
        load_model(str(folder))
    assert not ran.exists()


def test_an_adapters_base(own_model: Path, ran: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft merges adapters, and is not installed")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    said = {"peft_type": "LORA", "base_model_name_or_path": str(own_model), "r": 2, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match=REFUSED):
        load_model(str(adapter))
    assert not ran.exists()


def test_an_embedding_model(tmp_path: Path, ran: Path) -> None:
    from retrieval.embedding.embedder import SentenceEmbedder

    folder = tmp_path / "embedder"
    folder.mkdir()
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Own"}]))
    (folder / "config_sentence_transformers.json").write_text("{}")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "bert", "hidden_size": 8, "max_position_embeddings": 64})
    )
    Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    with_own_python(folder, ran, "own")
    with pytest.raises(Exception, match="trust_remote_code"):
        SentenceEmbedder(str(folder)).warm_up()
    assert not ran.exists()


def test_a_ranker(own_model: Path, ran: Path) -> None:
    from retrieval.ranking.ranker import _load_pairs

    with pytest.raises(Exception, match="trust_remote_code"):
        _load_pairs(own_model)
    assert not ran.exists()


def _loads(call: ast.Call) -> bool:
    """Whether a call reads a checkpoint by transformers, optimum or sentence-transformers."""
    called = ast.unparse(call.func)
    return (
        called.endswith(("SentenceTransformer", "sentence_transformers.CrossEncoder"))
        or re.search(r"(Auto|OV)\w+\.from_pretrained$", called) is not None
    )


def test_every_call_refuses_it() -> None:
    root = Path(__file__).parents[4]
    asked, calls = [], 0
    for package in ("drafters", "eval", "retrieval", "service", "sparse_attn"):
        for path in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and _loads(node):
                    calls += 1
                    if "trust_remote_code=False" not in [
                        f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in node.keywords
                    ]:
                        asked.append(f"{path.relative_to(root)}:{node.lineno}")
    assert calls >= 10
    assert asked == []
