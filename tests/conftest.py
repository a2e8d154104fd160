"""Fixtures shared by every package's tests."""

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog
import torch

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
