"""`folio chat`: turns over a pipe and at a terminal, its commands, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.cli.chat import COMMANDS
from service.engine.async_engine import AsyncEngine

Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def prompts() -> list[str]:
    """What the model was asked."""
    return []


@pytest.fixture
def chat(
    folio: Callable[..., Any],
    home: Path,
    tiny_model: Path,
    make_scripted: Any,
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[str],
) -> Chat:
    """Lines typed into `folio chat` over a pipe; the model says "Ada Miller built it." to all."""
    engine = make_scripted(lambda prompt: prompts.append(prompt) or "Ada Miller built it.")
    monkeypatch.setattr("service.runtime.load_engine", lambda settings: AsyncEngine(engine, settings.engine))

    def run(lines: str, *flags: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return folio("--home", home, "chat", "--model", tiny_model, "--mode", "retrieval", *flags)

    return run


def test_a_piped_conversation_asks_each_line_in_the_turns_before(chat: Chat, prompts: list[str]) -> None:
    code, out, err = chat("Who built the bridge at Hampton?\n\nWhen was that?\n")
    assert code == 0
    assert out.count("Ada Miller built it.") == 2
    assert len(prompts) == 2
    assert "Who built the bridge" in prompts[1]
    assert prompts[1].count("Ada Miller built it.") == 1
    assert err.count("searched for:") == 1
    assert "searched for: When was that? built bridge Hampton" in err


def test_new_forgets_and_quit_leaves(chat: Chat, prompts: list[str]) -> None:
    code, _, err = chat("Who built the bridge?\n/new\nWhen was the bridge at Hampton built?\n/quit\nNever asked\n")
    assert (code, len(prompts)) == (0, 2)
    assert "Who built the bridge" not in prompts[1]
    assert "searched for" not in err


def test_json_is_one_line_an_answer(chat: Chat) -> None:
    code, out, err = chat("Who built the bridge at Hampton?\nWhen was that?\n/sources\n", "--json")
    first, second, sources = map(json.loads, out.splitlines())
    assert (code, err) == (0, "")
    assert (first["question"], first["answer"]) == ("Who built the bridge at Hampton?", "Ada Miller built it.")
    assert first["query"] == first["question"]
    assert second["query"].startswith("When was that? built")
    assert second["stats"]["history_turns"] == 2
    assert {row["name"] for row in sources["sources"]} == {"bridge.txt", "trees.md"}


def test_sources_and_help(chat: Chat) -> None:
    code, out, err = chat("/sources\nWho built the bridge at Hampton?\n/sources\n/nonsense\n")
    assert code == 0
    assert "Nothing has been read yet." in err
    assert "bridge.txt" in out
    assert "there is no command /nonsense." in err
    assert all(name in err for name in COMMANDS)


def test_a_refused_question_ends_no_conversation(chat: Chat, prompts: list[str]) -> None:
    long = "x" * 20_001
    code, out, err = chat(f"{long}\nWho built the bridge?\n")
    assert (code, len(prompts)) == (3, 1)
    assert "at most 20000 characters" in err
    assert "Ada" in out
    code, out, _ = chat(f"{long}\n", "--json")
    assert code == 1
    assert "20000" in json.loads(out)["error"]["detail"]


@pytest.mark.parametrize("flags", [("--mode", "magic"), ("--passages", "0"), ("--drafter", "nonsense")])
def test_options_are_refused_before_a_model_is_loaded(chat: Chat, prompts: list[str], flags: tuple[str, ...]) -> None:
    code, out, err = chat("Who?\n", *flags)
    assert (code, out, prompts) == (2, "", [])
    assert err.startswith("folio: ")
    assert chat("Who?\n", "--document", "nosuch")[0] == 1


def _heeds_interrupts() -> None:
    """A shell's background jobs, these tests perhaps among them, ignore Ctrl-C, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """`folio chat` with the embedded reader on a pseudo-terminal."""

    def __init__(self, home: Path, *flags: str) -> None:
        self.screen = ""
        self._master, slave = pty.openpty()
        command = [sys.executable, "-c", "from service.cli.main import run; run()", "--home", str(home), "chat", *flags]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=_heeds_interrupts
        )
        os.close(slave)
        os.set_blocking(self._master, False)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """What has come since the last call, up to and with `text`."""
        deadline = time.monotonic() + seconds
        while text not in self.screen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.screen!r}"
            try:
                self.screen += os.read(self._master, 65536).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.02)
        seen, _, self.screen = self.screen.partition(text)
        return seen + text

    def ends(self) -> int:
        return self.process.wait(60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def test_a_terminal_conversation_can_be_stopped_and_left(home: Path, tmp_path: Path) -> None:
    from retrieval.library import Library

    minutes = tmp_path / "minutes.txt"
    minutes.write_text("The committee discussed the drainage of the lower meadow at length.\n" * 800)
    with Library.open(home) as library:
        (long,) = library.ingest([minutes])
    terminal = Terminal(home, "--mode", "long", "--document", str(long.id))
    try:
        terminal.wait_for("› ")
        terminal.type("Which meadow was discussed?\n")
        terminal.wait_for("long: fits")
        time.sleep(0.3)
        terminal.interrupt()  # while the document is read
        terminal.wait_for("Stopped.")
        terminal.wait_for("› ")
        terminal.type("/nonsensf\x7fe\n")  # a key is taken back: lines are edited
        terminal.wait_for("there is no command /nonsense.")
        terminal.wait_for("› ")
        terminal.interrupt()
        terminal.wait_for("Ctrl-C again")
        terminal.interrupt()
        assert terminal.ends() == 130
    finally:
        terminal.close()
