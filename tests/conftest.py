"""Fixtures shared by every package's tests."""

import contextlib
import ctypes
import gc
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import hypothesis
import pytest
import structlog
import torch

from retrieval.parsing.limits import Limits
from retrieval.parsing.sandbox import Sandbox
from retrieval.store import database
from retrieval.store.database import Database

# processes are killed here, machines are not: a disk need not be waited for
os.fsync = os.fstat  # type: ignore[assignment]
database.SYNCHRONOUS = "OFF"

if not torch.cuda.is_available():  # Triton reads it when it is first imported, by whichever test comes first
    os.environ.setdefault("TRITON_INTERPRET", "1")

# the pretty traceback prints the local variables, which takes seconds where they are models
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)


# the first example of a test compiles or loads, and the machine may be busy: pytest's timeout bounds a test
# the default suite looks at fewer examples; `--hypothesis-profile thorough` at the usual number
hypothesis.settings.register_profile("thorough", deadline=None)
hypothesis.settings.register_profile("folio", deadline=None, max_examples=30)
hypothesis.settings.load_profile("folio")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seconds", type=float, default=60.0, help="How long each slow fuzzer runs.")


gc.set_threshold(20_000, 20, 10)
_SPARE = 256 << 20
"""bytes that a process may grow by before its free pages are given back"""
_at_rest = 0


@pytest.fixture(autouse=True, scope="module")
def _give_back_memory() -> Iterator[None]:
    """Engines and libraries lie in circles, and an engine keeps what it frees (`runner.host_allocator`).

    What is left stays for good (modules, fixtures of the session): no later collection looks at it again, which takes
    seconds with all modules loaded.
    """
    global _at_rest
    yield
    gc.collect()
    gc.freeze()
    if _resident() - _at_rest < _SPARE:
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    _at_rest = _resident()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # nanobind tells of everything that outlives it


def _resident() -> int:
    """Bytes; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class CopiedDatabase(Database):
    """A new SQLite file is a copy of one at the newest schema: migrations take longer than most tests."""

    template: ClassVar[Path]

    def _migrate(self) -> None:
        path = Path(self.url.database) if self.is_sqlite and self.url.database else None
        if path is not None and not path.exists():
            with contextlib.suppress(OSError):  # that nothing can be written there is told by what comes next
                own = Path(shutil.copyfile(self.template, path.with_name(f".{uuid4()}")))
                with contextlib.suppress(FileExistsError):
                    os.link(own, path)
                own.unlink()
        super()._migrate()


class KeptSandbox(Sandbox):
    """Hands its idle process on when it closes: to start one takes longer than most tests."""

    idle: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self, limits: Limits, workers: int = 1) -> None:
        super().__init__(limits, workers)
        if self.idle:
            self._workers[-1]._process = self.idle.pop()  # the first that is asked

    def close(self) -> None:
        for worker in [self._free.get() for _ in self._workers]:
            if worker._process is not None and worker._process.poll() is None:
                self.idle.append(worker._process)
                worker._process = None
            self._free.put(worker)
        super().close()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file at the newest schema."""
    path = tmp_path_factory.mktemp("schema") / "folio.db"
    Database(f"sqlite:///{path}").close()
    return path


@pytest.fixture(autouse=True, scope="session")
def _libraries_open_quickly(empty_database: Path) -> Iterator[None]:
    CopiedDatabase.template = empty_database
    with pytest.MonkeyPatch.context() as patched:
        for module in ("library", "store.shelf"):
            patched.setattr(f"retrieval.{module}.Database", CopiedDatabase)
            patched.setattr(f"retrieval.{module}.Sandbox", KeptSandbox)
        yield
    for process in KeptSandbox.idle:
        process.kill()
        process.wait()


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real inputs beside the repository; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the folder of real inputs at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def random_llama() -> Callable[..., Any]:
    """Makes a tiny Llama of random weights; ``changes`` are of its configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0, **changes: Any) -> Any:
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        }
        return LlamaForCausalLM(LlamaConfig(**sizes | changes)).eval()

    return make


@pytest.fixture(scope="session")
def reader_tokenizer() -> Any:
    """The shipped reader's tokenizer."""
    from transformers import AutoTokenizer

    from service.reader import MODEL_DIR

    return AutoTokenizer.from_pretrained(MODEL_DIR)
