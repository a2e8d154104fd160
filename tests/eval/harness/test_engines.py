"""Engines: points of the configuration, the engine in this process, and OpenAI endpoints."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval.errors import EvalError
from eval.harness.engines import LocalEngine, OpenAIEngine, Point, folder_name
from eval.harness.options import RunOptions
from eval.harness.plan import Plan
from eval.harness.progress import TextProgress
from eval.harness.prompting import ModelInput, OfficialPrompter
from eval.harness.run import run
from eval.tasks.sources import sources
from service.engine.async_engine import AsyncEngine
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import prepare


@pytest.mark.parametrize(
    ("name", "attention", "drafter", "retrieval"),
    [
        ("dense", "dense", "none", False),
        ("lserve:budget=2048", "lserve:budget=2048", "none", False),
        ("xattention+quest", "xattention+quest", "none", False),
        ("fusion", "dense", "fusion", False),
        ("rapid:depth=4", "dense", "rag:depth=4", False),
        ("auto", "auto", "none", False),
        ("dense+auto", "dense", "auto", False),
        ("retrieval+suffix", "dense", "suffix", True),
    ],
)
def test_points_are_read_from_their_names(name, attention, drafter, retrieval):
    point = Point.parse(name)
    assert (point.attention, point.drafter, point.retrieval, point.same_tokens) == (attention, drafter, retrieval, True)


@pytest.mark.parametrize("name", ["rapid:target_mix=0.5", "multi_round"])
def test_a_drafter_that_gives_other_tokens_is_known_to(name):
    assert not Point.parse(name).same_tokens


@pytest.mark.parametrize("name", ["densest", "suffix+recycling", "lserve:budget=x", "fusion:nodes=3", ""])
def test_a_wrong_point_is_named(name):
    with pytest.raises(EvalError, match="the engine"):
        Point.parse(name)


@pytest.fixture(scope="module")
def loaded(tokenizer, random_llama):
    return prepare(
        "tiny",
        random_llama(
            vocab_size=256,
            max_position_embeddings=4096,
            eos_token_id=None,
            bos_token_id=None,
            tie_word_embeddings=False,
        ),
        tokenizer,
    )


@pytest.fixture(scope="module")
def engine(loaded):
    with AsyncEngine(Engine(loaded, EngineConfig(kv_memory=64 << 20, prefix_cache=False))) as engine:
        yield engine


def test_the_engine_in_this_process_answers_with_its_figures(engine, tokenizer):
    local = LocalEngine(engine, Point.parse("dense"))
    prompt = ModelInput(tuple(tokenizer.encode("abc" * 50)), "")
    reply = local.answer(prompt, 9)
    assert len(reply.token_ids) == 9
    assert reply.text == tokenizer.decode(reply.token_ids)
    assert reply.finish_reason == "length"
    assert 0 < reply.ttft_s <= reply.total_s
    assert reply.decode_tokens_per_s > 0
    assert local.answer(prompt, 9).token_ids == reply.token_ids


def test_a_prompt_that_the_engine_refuses_fails_alone(engine, tokenizer, tmp_path):
    points = [LocalEngine(engine, Point.parse(name)) for name in ("dense", "suffix")]
    prompter = OfficialPrompter(tokenizer, "yarn")
    found = sources(["passkey"], data=None, text=None, count=2, seed=0)
    for point in points:
        point.window = 1 << 20  # more than the engine will take
    options = RunOptions(length=(512, 8192), limit=(2,), output=tmp_path)
    plan = Plan(options, [(p, prompter) for p in points], found)
    cells = {(c["engine"], c["length"]): c for c in run(plan, TextProgress(io.StringIO()))["cells"]}
    assert [cells[name, 512]["failed"] for name in ("dense", "suffix")] == [0, 0]
    assert [cells[name, 8192]["failed"] for name in ("dense", "suffix")] == [2, 2]


@pytest.mark.parametrize("task", ["scbench_kv", "scbench_kv_scdq"])
def test_a_point_finds_the_context_that_it_has_read_and_no_others(loaded, tokenizer, tmp_path, task):
    found = sources([task], data=None, text=None, count=10, seed=0, new_tokens=4)
    with AsyncEngine(Engine(loaded, EngineConfig(kv_memory=64 << 20, page_size=16))) as engine:
        points = [LocalEngine(engine, Point.parse(name), name) for name in ("dense", "suffix")]
        prompter = OfficialPrompter(tokenizer, "yarn")
        options = RunOptions(length=(1500,), limit=(10,), output=tmp_path)
        cells = run(Plan(options, [(p, prompter) for p in points], found), TextProgress(io.StringIO()))["cells"]
    for cell in cells:
        assert cell["failed"] == 0
        assert 0.5 < cell["speed"]["cached_share"] < 0.8  # of ten prompts the first of two sessions are read whole
        assert cell["groups"]["turn"].keys() == {"0", "1", "2", "3", "4"}
    assert cells[0]["speed"]["cached_share"] == cells[1]["speed"]["cached_share"]
    assert cells[0]["scores"] == cells[1]["scores"]


def test_a_policy_that_the_model_does_not_allow_is_refused_before_anything_runs(engine):
    with pytest.raises(EvalError, match=r"the engine 'lserve'.*head file"):
        LocalEngine(engine, Point.parse("lserve"))


class Endpoint(BaseHTTPRequestHandler):
    """Streams "The key is 12345." as an OpenAI server would; refuses max_tokens of 13."""

    seen: list = []

    def log_message(self, *_): ...

    def do_GET(self):
        self._send(200, json.dumps({"data": [{"id": "only-model"}]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, body, self.headers.get("Authorization")))
        if body["max_tokens"] == 13:
            self._send(400, b'{"error": {"message": "unlucky"}}')
            return
        chat = self.path.endswith("/chat/completions")
        pieces = ["The key is", " 12345."]
        chunks = [{"choices": [{"delta": {"content": p}} if chat else {"text": p}]} for p in pieces]
        chunks.append({"choices": [{"delta": {}, "text": "", "finish_reason": "length"}]})
        chunks.append({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}})
        self._send(200, "".join(f"data: {json.dumps(c)}\n\n" for c in chunks).encode() + b"data: [DONE]\n\n")

    def _send(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def endpoint():
    Endpoint.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint_answers_chat_and_completion(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    engine = OpenAIEngine(f"openai:{endpoint}", window=1000)
    chat = engine.answer(ModelInput((1, 2), "text", ({"role": "user", "content": "hi"},)), 5)
    assert (chat.text, chat.finish_reason, chat.prompt_tokens) == ("The key is 12345.", "length", 7)
    assert chat.stats["output_tokens"] == 5
    assert engine.answer(ModelInput((1, 2), "text"), 5).text == chat.text
    (path, body, key), (other_path, other, _) = Endpoint.seen
    assert (path, body["model"], key) == ("/v1/chat/completions", "only-model", "Bearer secret")
    assert (other_path, other["prompt"], other["temperature"]) == ("/v1/completions", "text", 0)


def test_an_endpoint_that_refuses_is_quoted(endpoint):
    engine = OpenAIEngine(f"openai:{endpoint}:some/model:tag", window=1000)
    with pytest.raises(EvalError, match=r"400.*unlucky"):
        engine.answer(ModelInput((1,), "text"), 13)
    assert Endpoint.seen[0][1]["model"] == "some/model:tag"


def test_an_endpoint_that_is_not_there_is_named():
    engine = OpenAIEngine("openai:http://127.0.0.1:9/v1:m", window=1000)
    with pytest.raises(EvalError, match=r"127\.0\.0\.1:9"):
        engine.answer(ModelInput((1,), "text"), 5)
    with pytest.raises(EvalError, match="no URL"):
        OpenAIEngine("openai:localhost", window=1000)


def test_folder_names_are_safe():
    assert folder_name("openai:http://h:1/v1:a/b") == "openai_http_h_1_v1_a_b"
    assert folder_name("lserve:budget=2048+fusion") == "lserve_budget=2048+fusion"
