"""Peers: the worker protocol, conversion to GGUF's row order, and greedy agreement of the workers at hand."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from eval.bench.peers import Options
from eval.bench.peers import run as run_bench
from eval.bench.runner import random_ids
from eval.errors import EvalError
from eval.peers import client
from eval.peers.client import PEERS, Peer, Worker
from eval.peers.setup import ENVIRONMENTS, build, python_of


@pytest.fixture(scope="module")
def model(tmp_path_factory, random_llama):
    folder = tmp_path_factory.mktemp("llama")
    random_llama(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        max_position_embeddings=1024,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    ).save_pretrained(folder)
    return folder


def fake_worker(tmp_path, monkeypatch, body):
    """A peer whose program is `body` below an import of the protocol."""
    folder = tmp_path / "workers"
    folder.mkdir()
    source = (client.Path(client.__file__).parent / "workers" / "protocol.py").read_text()
    (folder / "protocol.py").write_text(source)
    (folder / "fake_worker.py").write_text("from protocol import serve\n" + textwrap.dedent(body))
    monkeypatch.setattr(client, "__file__", str(tmp_path / "client.py"))
    return Peer("fake", "fake")


def test_a_worker_streams_ids_whatever_it_prints(tmp_path, monkeypatch):
    peer = fake_worker(
        tmp_path,
        monkeypatch,
        """
        def stream(engine, ids, new_tokens):
            print("noise on standard output")
            yield from range(engine, engine + new_tokens)
        serve(lambda request: request["threads"], stream)
        """,
    )
    with Worker(peer) as worker:
        worker.load(tmp_path, threads=7, context=10)
        timing = worker.generate([1, 2, 3], 4)
    assert timing.ids == (7, 8, 9, 10)
    assert 0 <= timing.ttft_s <= timing.total_s
    assert timing.rss_mb > 1


def test_a_worker_that_fails_is_quoted_and_one_that_dies_too(tmp_path, monkeypatch):
    peer = fake_worker(
        tmp_path,
        monkeypatch,
        """
        import os, sys
        def stream(engine, ids, new_tokens):
            if ids == [0]:
                print("last words", file=sys.stderr, flush=True)
                os._exit(1)
            raise RuntimeError("no such token")
            yield
        serve(lambda request: None, stream)
        """,
    )
    with Worker(peer) as worker:
        with pytest.raises(EvalError, match="RuntimeError: no such token"):
            worker.generate([1], 1)
        with pytest.raises(EvalError, match=r"died: .*last words"):
            worker.generate([0], 1)


def test_an_environment_that_is_not_built_says_how(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(EvalError) as error:
        python_of("openvino")
    assert "python -m eval.peers.setup openvino" in error.value.detail
    with pytest.raises(EvalError, match="unknown environment"):
        build("vllm")


def test_every_peer_names_an_environment_that_can_be_built():
    assert {peer.environment for peer in PEERS.values()} <= {*ENVIRONMENTS, None}


def test_gguf_rows_pair_neighbouring_dimensions(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", object())
    from eval.peers.exporters.gguf_export import interleave

    heads, half, width = 3, 4, 5
    weight = np.arange(heads * 2 * half * width, dtype=np.float32).reshape(heads * 2 * half, width)
    mixed = interleave(weight, heads)
    for head in range(heads):
        for i in range(half):
            first, second = weight[head * 2 * half + i], weight[head * 2 * half + half + i]
            np.testing.assert_array_equal(mixed[head * 2 * half + 2 * i], first)
            np.testing.assert_array_equal(mixed[head * 2 * half + 2 * i + 1], second)


@pytest.mark.slow
def test_workers_agree_with_transformers_on_greedy_tokens(model):
    names = ["transformers", "transformers-lookup", "folio"]
    for peer in PEERS.values():
        if peer.environment and peer.environment in ENVIRONMENTS:
            try:
                python_of(peer.environment)
                names.append(peer.name)
            except EvalError:
                continue
    figures = run_bench(Options(model=model, lengths=(64,), engines=tuple(names), new_tokens=8, repeats=1, threads=1))
    for name, engine in figures["engines"].items():
        assert engine.get("agreeing_tokens") == engine.get("checked_tokens") == 32, (name, engine)
        assert engine["lengths"][64]["total_s"] > 0


def test_prompts_are_the_same_for_everyone():
    assert random_ids(5, 3, 100) == random_ids(5, 3, 100) != random_ids(5, 4, 100)


def test_workers_import_nothing_of_ours_but_the_protocol():
    """They run in environments that have neither this package nor its dependencies."""
    for program in (client.Path(client.__file__).parent / "workers").glob("*_worker.py"):
        if program.name == "folio_worker.py":
            continue
        code = f"import sys; sys.path.insert(0, {str(program.parent)!r}); import {program.stem}"
        done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, (program.name, done.stderr)
