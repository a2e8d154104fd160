"""Starts a worker and talks to it."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from eval.errors import EvalError
from eval.figures import ROOT
from eval.peers.setup import python_of


@dataclass(frozen=True)
class Peer:
    """An engine under comparison.

    Attributes:
        name: in tables. worker: the program. environment: of `setup.ENVIRONMENTS`, None for the running one.
        option: what the worker is asked for besides its default.
        precision: of its numbers: a dtype, or auto where it chooses itself.
        weights: what its weights are kept in, where the conversion decides that (`convert.converted`).
    """

    name: str
    worker: str
    environment: str | None = None
    option: str = ""
    precision: str = "float32"
    weights: str = ""


def _named(*peers: Peer) -> dict[str, Peer]:
    return {peer.name: peer for peer in peers}


PEERS = _named(
    Peer("folio", "folio", option="dense"),
    Peer("folio-auto", "folio", option="auto"),
    Peer("folio-suffix", "folio", option="suffix"),
    Peer("transformers", "transformers"),
    Peer("transformers-lookup", "transformers", option="prompt_lookup"),
    Peer("openvino", "openvino", "openvino"),
    Peer("openvino-xattention", "openvino", "openvino", "xattention"),
    Peer("llama.cpp", "llama_cpp", "llama_cpp"),
    Peer("ctranslate2", "ctranslate2", "ctranslate2"),
)
"""On one checkpoint in float32."""

GGUF_PEERS = _named(
    Peer("folio", "folio", option="dense", precision="auto"),
    Peer("transformers-bfloat16", "transformers", precision="bfloat16"),
    Peer("llama.cpp", "llama_cpp", "llama_cpp", precision="auto"),
    Peer("llama.cpp-lookup", "llama_cpp", "llama_cpp", option="prompt_lookup", precision="auto"),
    Peer("openvino", "openvino", "openvino", precision="auto"),
    Peer("openvino-xattention", "openvino", "openvino", option="xattention", precision="auto"),
    Peer("openvino-int8", "openvino", "openvino", precision="auto", weights="int8"),
    Peer("openvino-int4", "openvino", "openvino", precision="auto", weights="int4"),
    Peer("transformers", "transformers"),
    Peer("folio-float32", "folio", option="dense"),
)
"""On one GGUF file, each as it runs best; those that do not read such files have its dequantised weights."""


@dataclass(frozen=True)
class Loading:
    """How a worker loaded its model: seconds without imports, peak memory in MiB, what the engine says of itself."""

    load_s: float
    rss_mb: float
    about: str


@dataclass(frozen=True)
class Timing:
    """What a worker reports of one generation; memory is the process's peak so far, in MiB."""

    ids: tuple[int, ...]
    ttft_s: float
    total_s: float
    rss_mb: float

    @property
    def decode_s(self) -> float | None:
        """Seconds a token after the first."""
        return (self.total_s - self.ttft_s) / (len(self.ids) - 1) if len(self.ids) > 1 else None


class Worker:
    """A running worker process; closes with the ``with`` block."""

    def __init__(self, peer: Peer, *, timeout_s: float = 1200) -> None:
        python = str(python_of(peer.environment)) if peer.environment else sys.executable
        program = Path(__file__).parent / "workers" / f"{peer.worker}_worker.py"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} if peer.environment is None else None
        self.peer = peer
        self._timeout_s = timeout_s
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [python, str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def load(self, model: Path, *, threads: int, context: int, sequences: int = 1) -> Loading:
        """Load a model in the peer's own format, for so many sequences of ``context`` tokens at once.

        Raises:
            EvalError: as `generate`.
        """
        peer = self.peer
        asked = {"model": str(model), "threads": threads, "context": context, "sequences": sequences}
        reply = self._ask({"op": "load", **asked, "option": peer.option, "precision": peer.precision})
        return Loading(reply["load_s"], reply["rss_mb"], reply["about"])

    def generate(self, ids: list[int], new_tokens: int) -> Timing:
        """Generate greedily; exactly `new_tokens` tokens.

        Raises:
            EvalError: the engine failed, died, or took longer than the time-out.
        """
        reply = self._ask({"op": "generate", "ids": ids, "new_tokens": new_tokens})
        return Timing(tuple(reply["ids"]), reply["ttft_s"], reply["total_s"], reply["rss_mb"])

    def batch(self, prompts: list[list[int]], new_tokens: int) -> tuple[list[list[int]], float]:
        """Generate greedily for all prompts at once; their tokens, exactly `new_tokens` each, and the seconds taken.

        Raises:
            EvalError: as `generate`, or the worker takes one prompt at a time.
        """
        reply = self._ask({"op": "batch", "prompts": prompts, "new_tokens": new_tokens})
        return reply["ids"], reply["total_s"]

    def score(self, ids: list[int]) -> float:
        """The mean negative log-likelihood of all ids but the first.

        Raises:
            EvalError: as `generate`, or the worker does not tell.
        """
        return float(self._ask({"op": "score", "ids": ids})["loss"])

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EvalError(f"{self.peer.name} died: {self._last_words()}") from error
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self._timeout_s):
                raise EvalError(f"{self.peer.name} did not answer within {self._timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise EvalError(f"{self.peer.name} died: {self._last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise EvalError(f"{self.peer.name}: {reply['error']}")
        return reply

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read()[-600:].strip()
