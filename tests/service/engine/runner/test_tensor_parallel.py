"""Two ranks on the CPU give the tokens of one, and end together whatever happens to either."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from service.engine.loading.checkpoint import check_device, check_shares
from service.engine.options import parse_policy
from service.engine.runner.ranks import check_devices, join, leading
from service.errors import InvalidRequest, ModelError
from sparse_attn.plan.policy import ModelShape
from sparse_attn.plan.sharding import ShardedPolicy, shard_shape

from ..conftest import make_model

ROOT = Path(__file__).resolve().parents[4]

RUN = """
import json, sys
from service.engine.async_engine import AsyncEngine
from service.engine.runner.ranks import run_ranks
from service.engine.params import SamplingParams
from service.engine.runner.tensor_parallel import follow

folder, size = sys.argv[1], int(sys.argv[2])
jobs = json.loads(sys.argv[3])

def lead():
    found = {}
    for name in jobs["models"]:
        engine = AsyncEngine.from_pretrained(f"{folder}/{name}", dtype="float64", device="cpu", tensor_parallel=size,
                                             page_size=16, step_tokens=64, kv_memory=1 << 22)
        heads = engine.engine.loaded.kv_shape.num_kv_heads
        with engine:
            for label, options in jobs["requests"].items():
                params = SamplingParams(max_tokens=12, ignore_eos=True, **options)
                results = engine.generate(jobs["prompts"], params)
                found[f"{name}/{label}"] = [r.token_ids for r in results]
        found[f"{name}/heads"] = heads
        engine.engine.check_integrity()
    print(json.dumps(found))
    return 0

if __name__ == "__main__":
    sys.exit(run_ranks(size, "cpu", lead, follow))
"""

LONG_RUN = RUN.replace("        engine.engine.check_integrity()", '        print("started", flush=True)')

REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {"drafter": "none", "attention": "dense"},
    "drafted": {"drafter": "prompt_lookup", "attention": "dense", "temperature": 0.7, "seed": 3},
    "sparse": {"drafter": "prompt_lookup", "attention": "streaming:sink=16,local=32,block=16"},
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}


def two_processes(*arguments: str, size: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=900, check=False)


def started(checkpoints: Path, stderr: int) -> tuple[subprocess.Popen[str], int]:
    """Two ranks in the middle of a long run: the leader, and the process number of the follower."""
    jobs = json.dumps({"models": ["llama"] * 50, "prompts": [[5, 6, 7]], "requests": REQUESTS})
    command = [sys.executable, "-c", LONG_RUN, str(checkpoints), "2", jobs]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=ENVIRONMENT)
    assert running.stdout is not None
    assert "started\n" in running.stdout
    (follower,) = _children(running.pid)
    return running, follower


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("llama", "qwen3"):
        make_model(name, max_position_embeddings=256).save_pretrained(folder / name)
    return folder


@pytest.mark.timeout(1200)
@pytest.mark.slow  # three starts of the interpreter with torch and transformers
def test_two_ranks_give_the_tokens_of_one(checkpoints: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 97, (n,), generator=generator).tolist() * 2 for n in (9, 41)]
    jobs = json.dumps({"models": ["llama", "qwen3"], "prompts": prompts, "requests": REQUESTS})
    found = []
    for size in (1, 2):
        done = two_processes(str(checkpoints), str(size), jobs)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))  # the log is before it
    one, two = found
    assert [one.pop(f"{name}/heads") for name in ("llama", "qwen3")] == [2, 2]
    assert [two.pop(f"{name}/heads") for name in ("llama", "qwen3")] == [1, 1]
    assert two == one


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_torchrun_starts_the_ranks_as_well(checkpoints: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "ids.json"
    prompt.write_text(json.dumps([5, 6, 7, 8] * 5))
    arguments = [
        "-m", "service.cli", "generate", "--model", str(checkpoints / "llama"), "--prompt-ids", str(prompt),
        "--max-new", "12", "--ignore-eos", "--device", "cpu", "--json", "--tp",
    ]  # fmt: skip
    found = []
    for ranks, torchrun in (("1", []), ("2", ["-m", "torch.distributed.run", "--nproc-per-node", "2"])):
        command = [sys.executable, *torchrun, *arguments, ranks]
        environment = {**ENVIRONMENT, "FOLIO_HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout)["token_ids"])  # rank 0 alone speaks
    assert len(found[0]) == 12
    assert found[1] == found[0]


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_with_one_sentence(checkpoints: Path) -> None:
    """The follower is killed in mid-run: rank 0 says so and ends, nothing waits."""
    running, follower = started(checkpoints, stderr=subprocess.PIPE)
    time.sleep(1)
    os.kill(follower, signal.SIGKILL)
    _, said = running.communicate(timeout=600)
    assert running.returncode == 1
    sentences = [line for line in said.splitlines() if line.startswith("folio: ")]
    assert sentences == ["folio: rank 1 of 2 has ended (killed by SIGKILL); the others end too."]


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_the_leader_that_dies_leaves_no_rank_behind(checkpoints: Path) -> None:
    running, follower = started(checkpoints, stderr=subprocess.DEVNULL)
    running.kill()
    running.wait()
    deadline = time.monotonic() + 600
    while _alive(follower) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _alive(follower)


def _children(pid: int) -> list[int]:
    own = Path(f"/proc/{pid}/task/{pid}/children")
    if not own.exists():
        pytest.skip("this kernel does not list a process's children")
    return [int(n) for n in own.read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_policy_is_dealt_out_by_heads() -> None:
    model = ModelShape(2, 8, 4, 16, 16, 256)
    policy = parse_policy("streaming:sink=16,local=32,block=16")
    shares = [ShardedPolicy.of(policy, model, rank, 2) for rank in range(2)]
    own = shard_shape(model, 2)
    assert (own.num_q_heads, own.num_kv_heads) == (4, 2)
    for layer in range(2):
        rules = [share.decode(layer, own) for share in shares]
        assert all(rule is not None for rule in rules)
        whole = policy.decode(layer, model)
        back = [2 * rank + head for rank, rule in enumerate(rules) for head in rule.streaming]  # type: ignore[union-attr]
        assert back == list(whole.streaming)
        patterns = policy.prefill(layer, model, 64)
        parts = [share.prefill(layer, own, 64) for share in shares]
        assert all(len(part) in (1, 4) for part in parts)
        assert len(patterns) == 1 or [p for part in parts for p in part] == list(patterns)
    assert shares[0].cache_key() == policy.cache_key()


def test_heads_that_do_not_divide_are_refused_before_loading() -> None:
    config = AutoConfig.for_model("llama", hidden_size=96, num_attention_heads=6, num_key_value_heads=3)
    with pytest.raises(ModelError, match="6 query and 3 KV heads, which 2 ranks cannot share"):
        check_shares("small", config, 2)
    check_shares("small", config, 3)
    with pytest.raises(ModelError, match=r"no tensor-parallel plan for the model 'other' \(gpt2\)"):
        check_shares("other", AutoConfig.for_model("gpt2"), 2)


def test_a_group_that_cannot_be_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ModelError, match="--tp 2 needs 2 GPUs on this machine, which has 1"):
        check_devices(2, "cuda")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InvalidRequest, match="--tp 2 was asked for, and torchrun started 4 ranks"):
        join(2, "cpu")
    with pytest.raises(ModelError, match="folio serve --tp 2"):
        leading(2)
    assert leading(1) is None


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ModelError, match="is a build without CUDA"):
        check_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ModelError, match="finds no GPU") as refused:
        check_device("cuda:0")
    assert "the driver may be missing or too old for this wheel" in refused.value.detail
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ModelError, match="cuda:3 was asked for; this machine has 1"):
        check_device("cuda:3")
    check_device("cpu")


@pytest.mark.parametrize(
    ("built", "capability", "fits"),
    [
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80", "sm_86"], (8, 9), True),
        (["sm_80", "sm_90a"], (10, 0), False),
        (["sm_75", "compute_90"], (12, 0), True),
        (["sm_80"], (7, 5), False),
    ],
)
def test_a_wheel_that_is_not_for_the_gpu_is_named(
    monkeypatch: pytest.MonkeyPatch, built: list[str], capability: tuple[int, int], fits: bool
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in (
        ("device_count", 1), ("get_device_capability", capability), ("get_arch_list", built), ("get_device_name", "X"),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    if fits:
        check_device("cuda")
        return
    with pytest.raises(ModelError, match=r"X is of compute capability \d+\.\d, for which torch .* is not built"):
        check_device("cuda")


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_the_service_runs_on_two_ranks_and_ends_on_sigterm(tmp_path: Path) -> None:
    """`folio serve --tp 2 --device cpu` with the embedded reader: an answer, a drain, no rank left."""
    import httpx

    environment = {**os.environ, "FOLIO_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["TRITON_INTERPRET"] = "0"
    command = [sys.executable, "-m", "service.cli", "serve", "--tp", "2", "--device", "cpu", "--port", "0"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert running.stderr is not None
    base = ""
    for line in running.stderr:
        if " is at http://" in line:
            base = line.split(" is at ")[1].split()[0]
        if line.startswith("Ready"):
            break
    (follower,) = _children(running.pid)
    asked = {"model": "embedded", "prompt": "The bridge was built", "max_tokens": 6, "temperature": 0}
    answer = httpx.post(f"{base}/v1/completions", json=asked, timeout=600).json()
    assert answer["usage"]["completion_tokens"] >= 1
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=600) == 0
    assert not _alive(follower)
