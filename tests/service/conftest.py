"""A tiny random model with a real tokenizer and chat template, and homes with documents in them."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

BOOK = (
    "The bridge at Hampton was built by Ada Miller in 1862. It has seven arches of grey stone.\n\n"
    "The mill beside it belonged to the parish. A flood took the mill in 1871, and it was not rebuilt.\n\n"
    "Visitors may cross the bridge on foot. Carts must use the ford, which is two hundred yards upstream.\n"
)
TREES = (
    "# Trees of the valley\n\nThe oldest oak stands behind the church. Its trunk measures nine metres around.\n\n"
    "Limes were planted along the road in 1903. The elm has died out.\n"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, random_llama) -> Path:
    """Folder of a two-layer random Llama with a byte-level tokenizer and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    random_llama(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test, and no pool is larger than a test needs: all of it is touched."""
    for name in [name for name in os.environ if name.startswith("FOLIO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FOLIO_KV_MEMORY", "128MiB")


@pytest.fixture(scope="session")
def home_with_documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with two small documents; tests get a copy of it."""
    from retrieval.library import Library

    folder = tmp_path_factory.mktemp("library")
    book, trees = folder / "bridge.txt", folder / "trees.md"
    book.write_bytes(BOOK.encode())
    trees.write_bytes(TREES.encode())
    with Library.open(folder / "home") as library:
        library.ingest([book, trees])
    return folder


@pytest.fixture
def files(home_with_documents: Path, tmp_path: Path) -> list[Path]:
    """Two small documents."""
    return [Path(shutil.copy(home_with_documents / name, tmp_path)) for name in ("bridge.txt", "trees.md")]


@pytest.fixture
def home(home_with_documents: Path, tmp_path: Path) -> Path:
    """A data folder with the two documents."""
    return Path(shutil.copytree(home_with_documents / "home", tmp_path / "home"))


@pytest.fixture
def folio(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: `folio(home, "ls", …)` gives exit code, stdout and stderr."""
    from service.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return int(code), said.out, said.err

    return run


class ScriptedEngine:
    """Stands in for the engine where a test needs an answer that makes sense: the reply is a function of the prompt.

    It has what AsyncEngine and Admission use of an Engine, and gives a few tokens a step, `pause_s` apart.
    """

    def __init__(self, tokenizer: Any, reply: Callable[[str], str], pause_s: float = 0.0) -> None:
        from service.engine.canary import Canary
        from service.engine.config import EngineConfig
        from service.engine.loading.sampling_defaults import SamplingDefaults
        from service.engine.sampling.grammars import inspect
        from sparse_attn.plan.policy import ModelShape

        self.shape = ModelShape(num_layers=2, num_q_heads=4, num_kv_heads=2, head_dim=16, max_length=8192)
        self.tokenizer = tokenizer
        self.reply = reply
        self.pause_s = pause_s
        self.max_model_len = 8192
        self.num_pages = 128
        self.vocab_size = len(tokenizer)
        self.config = EngineConfig(device="cpu")
        self.loaded = SimpleNamespace(
            arithmetic="float32",
            tokenizer=tokenizer,
            name="scripted",
            model=SimpleNamespace(
                base_model=None, config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=64))
            ),
            fingerprint="scripted",
            weights="plain",
            vocab_size=len(tokenizer),
            tokenizer_fingerprint="scripted",
            num_parameters=10**9,
            sampling=SamplingDefaults(temperature=0.7, top_p=0.8, repetition_penalty=1.1),
        )
        self.constraints = SimpleNamespace(prepare=inspect)
        self.drafting = SimpleNamespace(learned=SimpleNamespace(forget=lambda owner: None))
        self.canary = Canary(0.0, 0.9, SimpleNamespace(running=[], waiting=[]), lambda hidden: hidden)  # type: ignore[arg-type]
        self.running: dict[str, list[int]] = {}
        self.counts: dict[str, tuple[int, int]] = {}
        self.ends: dict[str, str] = {}
        self.sampling: dict[str, dict[str, Any]] = {}
        self.failure: Exception | None = None

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def most_pages(self, prompt_len: int, max_len: int, attention: str | None = None) -> int:
        return -(-max_len // 64)

    def add_request(self, prompt_ids: list[int], params: Any, request_id: str, *_: Any) -> str:
        ids = self.tokenizer.encode(self.reply(self.tokenizer.decode(prompt_ids)), add_special_tokens=False)
        self.running[request_id] = ids[: params.max_tokens]
        self.ends[request_id] = "stop" if len(ids) <= params.max_tokens else "length"
        self.counts[request_id] = (len(prompt_ids), len(self.running[request_id]))
        self.sampling[request_id] = params.described()
        return request_id

    def abort(self, request_id: str) -> None:
        self.running.pop(request_id, None)

    def step(self) -> list[Any]:
        from service.engine.outputs import TokenOutput

        if self.running:
            time.sleep(self.pause_s)
        outputs = []
        for request_id, ids in list(self.running.items()):
            now, self.running[request_id] = ids[:4], ids[4:]
            if self.failure is not None:
                del self.running[request_id]
                outputs.append(TokenOutput(request_id, [], "", True, "error", error=str(self.failure)))
                continue
            done = not self.running[request_id]
            prompt, output = self.counts[request_id]
            stats = {
                "prompt_tokens": prompt,
                "output_tokens": output,
                "decode_tokens_per_s": 1.0,
                "ttft_s": 0.1,
                "sampling": self.sampling[request_id],
            }
            outputs.append(
                TokenOutput(
                    request_id,
                    now,
                    self.tokenizer.decode(now),
                    done,
                    self.ends[request_id] if done else None,
                    stats,
                )
            )
            if done:
                del self.running[request_id]
        return outputs

    def stats(self) -> dict[str, Any]:
        names = (
            "passage_queries",
            "passage_hits",
            "prefix_cache_queries",
            "prefix_cache_hits",
            "preemptions",
            "prompt_tokens",
            "output_tokens",
        )
        more = ("failed", "kv_pages_used", "requests_waiting", "kv_cache_usage")
        drafting = {"drafted": 0, "accepted": 0}
        return dict.fromkeys((*names, *more), 0) | {
            "requests_running": len(self.running),
            "drafting": drafting,
            "canary": {},
            "canary_skipped": 0,
        }


def quote_first_sentence(prompt: str) -> str:
    """A reply that quotes the first sentence of the first document of the prompt."""
    document = re.search(r"--- (\w+) 1: [^\n]*\n(.*?)\n--- \1\n", prompt, re.DOTALL)
    if document is None:
        return "The documents do not say."
    sentence = re.split(r"(?<=\.)\s", document.group(2).strip())[0]
    return f'It says "{" ".join(sentence.split())}" [1]. Nobody else knows of any unicorns.'


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def scripted(tokenizer: Any) -> ScriptedEngine:
    """An engine that quotes the first sentence it is given."""
    return ScriptedEngine(tokenizer, quote_first_sentence)


@pytest.fixture
def scripted_commands(
    tiny_model: Path, make_scripted: Callable[..., ScriptedEngine], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Lets commands of this process ask a scripted engine, which is loaded in no time; all else is as it is."""

    def use(reply: Callable[[str], str] = quote_first_sentence) -> None:
        from service.engine.async_engine import AsyncEngine

        def load(settings: Any) -> AsyncEngine:
            return AsyncEngine(make_scripted(reply), settings.engine)

        monkeypatch.setenv("FOLIO_MODEL", str(tiny_model))
        monkeypatch.setattr("service.runtime.load_engine", load)

    return use


@pytest.fixture(scope="session")
def make_scripted(tokenizer: Any) -> Callable[..., ScriptedEngine]:
    """Scripted engines with another reply or pace."""

    def make(reply: Callable[[str], str] = quote_first_sentence, pause_s: float = 0.0) -> ScriptedEngine:
        return ScriptedEngine(tokenizer, reply, pause_s)

    return make
