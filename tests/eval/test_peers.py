"""Peers: the worker protocol, conversion to GGUF's row order, and greedy agreement of the workers at hand."""

import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import numpy as np
import pytest

from eval.bench.runner import random_ids
from eval.bench.weights import peers
from eval.bench.weights.peers import Options
from eval.bench.weights.peers import run as run_bench
from eval.errors import EvalError
from eval.peers import client, setup
from eval.peers.client import GGUF_PEERS, PEERS, Loading, Peer, Timing, Worker
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
        with pytest.raises(EvalError, match="does not tell"):
            worker.score([1, 2])
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
    assert {peer.environment for peer in [*PEERS.values(), *GGUF_PEERS.values()]} <= {*ENVIRONMENTS, None}


def test_a_build_that_was_stopped_goes_on(tmp_path, monkeypatch):
    said = []

    def pip(python, *arguments, command="install", cmake=""):
        said.append(command)
        if command == "download":
            (tmp_path / "llama-1").mkdir()
            folder = Path(arguments[arguments.index("-d") + 1])
            folder.mkdir()
            with tarfile.open(folder / "llama-1.tar.gz", "w:gz") as archive:
                archive.add(tmp_path / "llama-1", "llama-1")
        elif len(said) == 2:
            raise EvalError("stopped")

    monkeypatch.setattr(setup, "_pip", pip)
    place, wanted = tmp_path / "build", setup.ENVIRONMENTS["llama_cpp"]
    with pytest.raises(EvalError, match="stopped"):
        setup._compile(tmp_path, wanted, place)
    assert (place / "sources").is_dir()
    setup._compile(tmp_path, wanted, place)
    assert said == ["download", "install", "install"]
    assert not place.exists()


@pytest.mark.skipif(shutil.which("g++") is None or platform.machine() != "x86_64", reason="no g++ for x86-64")
def test_the_compiler_keeps_what_tiles_are_loaded_from(tmp_path):
    """77 and 78 are stored before the instructions that read them, which GCC 12's own intrinsics do not say."""
    source = tmp_path / "tiles.cpp"
    source.write_text(
        """
        #include <immintrin.h>
        void configure() {
            alignas(64) unsigned char shape[64] = {1};
            shape[48] = 77;
            _tile_loadconfig(shape);
        }
        void load() {
            alignas(64) unsigned char tile[64] = {};
            tile[32] = 78;
            _tile_loadd(0, tile, 64);
        }
        """
    )
    header = Path(setup.__file__).with_name("amx_memory.h")
    flags = ["-O3", "-S", "-mamx-tile", "-mavx512f", "-include", header]
    done = subprocess.run(["g++", *flags, source, "-o", tmp_path / "tiles.s"], capture_output=True, text=True)
    if "-mamx-tile" in done.stderr:
        pytest.skip("this compiler knows no tiles")
    assert done.returncode == 0, done.stderr
    code = (tmp_path / "tiles.s").read_text()
    assert 0 < code.find("$77,") < code.find("ldtilecfg") < code.find("$78,") < code.find("tileloadd")


def test_drafts_of_prompt_lookup_change_no_token():
    """llama.cpp's worker over a stand-in that continues each text by a rule and drafts what is sometimes right."""
    program = Path(client.__file__).parent / "workers"
    sys.path.insert(0, str(program))
    try:
        from llama_cpp_worker import stream
    finally:
        sys.path.remove(str(program))

    class Engine:
        def __init__(self, drafts):
            self.drafts, self.held, self.runs = drafts, [], 0

        def forget(self):
            self.held = []

        def following(self, count):
            return sum(self.held[:count]) * 7 % 5

        def read(self, ids, sequence):
            self.held = list(ids)
            return self.following(len(ids))

        def run(self, tokens):
            self.runs += 1
            self.first = tokens[0][1]
            assert self.first == len(self.held), "what is held is what was kept"
            self.held += [token for token, *_ in tokens]

        def likeliest(self, row):
            return self.following(self.first + row + 1)

        def draft(self, text):
            right = sum(text) * 7 % 5
            return [right, (right + len(text)) % 5, 1][: self.drafts]

        def keep(self, count):
            del self.held[count:]

    plain, drafted = Engine(0), Engine(3)
    expected = list(stream(plain, [3, 1, 4], 20))
    assert list(stream(drafted, [3, 1, 4], 20)) == expected
    assert len(expected) == 20
    assert drafted.runs < plain.runs == 19


def test_llama_cpp_is_built_for_the_instructions_of_this_machine(monkeypatch):
    monkeypatch.setattr(setup.features, "processor_flags", lambda: frozenset({"avx2", "avx512f", "amx_tile"}))
    flags = shlex.split(setup.ggml_flags())
    assert {"-DGGML_AVX2=ON", "-DGGML_AVX512=ON", "-DGGML_AMX_TILE=ON", "-DGGML_NATIVE=OFF"} <= set(flags)
    assert "-DGGML_AVX512_VNNI=ON" not in flags
    assert all(flag.startswith("-D") for flag in flags)


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


class CountingWorker:
    """Answers at once; llama.cpp's dies."""

    started: list[str] = []

    def __init__(self, peer):
        self.peer = peer

    def __enter__(self):
        self.started.append(self.peer.name)
        return self

    def __exit__(self, *error):
        pass

    def load(self, model, **sizes):
        if self.peer.name == "llama.cpp":
            raise EvalError("llama.cpp died: illegal instruction")
        return Loading(0.5, 100.0, "counts")

    def generate(self, ids, new_tokens):
        return Timing(tuple(range(new_tokens)), 0.1, 0.1 + 0.01 * (new_tokens - 1), 200.0)

    def batch(self, prompts, new_tokens):
        return [[0] * new_tokens for _ in prompts], 1.0 + 0.01 * new_tokens

    def score(self, ids):
        return ids[0] / 100


def test_a_table_of_one_file_is_made_in_pieces(tmp_path, monkeypatch):
    class Source:
        config = type("Config", (), {"vocab_size": 300, "max_position_embeddings": 1024})

        def tokenizer(self):
            return lambda text: type("Encoded", (), {"input_ids": [ord(letter) for letter in text]})

    monkeypatch.setattr(peers, "Worker", CountingWorker)
    monkeypatch.setattr(peers, "converted", lambda model, *kind: model)
    monkeypatch.setattr(peers, "find_model", lambda name: Source())
    monkeypatch.setattr(CountingWorker, "started", [])
    text = tmp_path / "text.txt"
    text.write_text("a" * 16 + "b" * 16)
    asked = {"gguf": tmp_path / "a.gguf", "text": text, "windows": 2, "window": 16, "lengths": (16, 512, 1000)}
    kept = {}
    found = run_bench(Options(engines=("folio", "llama.cpp"), **asked), None, kept.update)
    assert found == kept
    assert [(row["engine"], row["tokens"]) for row in found["lengths"]] == [("folio", 16), ("folio", 512)]
    assert found["lengths"][1]["prefill_tokens_per_s"] == pytest.approx(5120)
    assert found["lengths"][1]["decode_ms"] == pytest.approx(10)
    assert found["perplexity"][0]["loss"] == pytest.approx(0.975)
    assert [row["engine"] for row in found["failed"]] == ["llama.cpp"]

    again = Options(engines=("folio", "openvino"), batches=(4,), **asked)
    found = run_bench(again, found)
    assert CountingWorker.started == ["folio", "llama.cpp", "folio", "openvino"]
    assert [row["engine"] for row in found["lengths"]] == ["folio", "folio", "openvino", "openvino"]
    assert [row["decode_tokens_per_s"] for row in found["batches"]] == [pytest.approx(400)] * 2
    run_bench(again, found)
    assert len(CountingWorker.started) == 4, "all is there"
    assert run_bench(Options(engines=("openvino-int8",), limit=1e-9, **asked), found) is None
    with pytest.raises(EvalError, match="made with threads 2, not 1"):
        run_bench(Options(threads=1, **asked), found)


def test_answers_are_as_long_as_folios_and_quotations_count(tmp_path, monkeypatch):
    class Source:
        config = type("Config", (), {"vocab_size": 300, "max_position_embeddings": 1024})
        num_parameters = None

        def tokenizer(self):
            return None

        def generation(self):
            return type("Generation", (), {"eos_token_id": [3]})

    monkeypatch.setattr(peers, "Worker", CountingWorker)
    monkeypatch.setattr(peers, "converted", lambda model, *kind: model)
    monkeypatch.setattr(peers, "find_model", lambda name: Source())
    monkeypatch.setattr(peers, "layout_for", lambda *_, **__: None)
    monkeypatch.setattr(peers, "questions", lambda *_: [[0, 1, 2, 9], [7, 8, 9]])
    asked = {"gguf": tmp_path / "a.gguf", "lengths": (16,), "questions": 2}
    found = run_bench(Options(engines=("openvino",), **asked))
    assert "folio has not answered yet" in found["failed"][0]["error"]
    found = run_bench(Options(engines=("folio", "folio:dense+auto", "openvino"), **asked), found)
    assert found["failed"] == []
    assert [row["tokens"] for row in found["answers"]] == [3] * 6
    assert [row["quoted"] for row in found["answers"] if row["engine"] == "folio"] == [1.0, 0.0]
    rows = [{"questions": 1, "tokens": 3, "agreeing_tokens": 3, "tokens_per_s": pytest.approx(100)}] * 3
    names = ["folio", "folio:dense+auto", "openvino"]
    assert found["quoting"] == [{"engine": name, **row} for name, row in zip(names, rows, strict=True)]
    with pytest.raises(EvalError, match="unknown or repeated part 'nothing'"):
        run_bench(Options(engines=("folio:nothing",), **asked))


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
    assert figures["failed"] == []
    for engine in figures["engines"]:
        assert engine["agreeing_tokens"] == engine["checked_tokens"] == 32, engine
    assert [(row["engine"], row["tokens"]) for row in figures["lengths"]] == [(name, 64) for name in names]
    assert all(row["total_s"] > 0 for row in figures["lengths"])


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
