"""`folio chat`: a conversation about the documents, at a terminal or over a pipe."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from service.answering.question import AnswerOptions, Question, Sampling, Turn, newest
from service.cli.answers import flag, given, option, print_support, shown, started
from service.cli.context import (
    LOCAL_OWNER,
    Attention,
    Collection,
    DeviceName,
    Drafter,
    Dtype,
    JsonFlag,
    ModelName,
    documents_of,
    settings_of,
)
from service.cli.explaining import PlainText
from service.cli.output import console, emit_json, emit_table, emit_text, error_line, note
from service.errors import Exit, FolioError, translate
from service.fields import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.answering.answer import Answer
    from service.engine.params import SamplingParams
    from service.runtime import Runtime

PROMPT = "› "
COMMANDS = {
    "/new": "begin a new conversation",
    "/sources": "what the last answer was read from",
    "/help": "these commands",
    "/quit": "leave (so does Ctrl-D)",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("chat")(chat)


def chat(
    context: typer.Context,
    document: Annotated[
        list[str] | None,
        typer.Option("--document", "-d", help="Answer from this id alone; may be repeated."),
    ] = None,
    collection: Collection = None,
    mode: Annotated[str | None, option(AnswerOptions, "mode")] = None,
    passages: Annotated[int | None, option(AnswerOptions, "passages")] = None,
    max_tokens: Annotated[int | None, option(Sampling, "max_tokens")] = None,
    temperature: Annotated[float | None, option(Sampling, "temperature")] = None,
    top_p: Annotated[float | None, option(Sampling, "top_p")] = None,
    seed: Annotated[int | None, option(Sampling, "seed")] = None,
    model: ModelName = None,
    dtype: Dtype = None,
    device: DeviceName = None,
    drafter: Drafter = None,
    attention: Attention = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask one question after the other, each in the conversation before it; the model is loaded once.

    Questions are lines of the standard input. /new begins a new conversation, /sources shows what was read, /quit
    leaves. Ctrl-C stops an answer, twice leaves. With --json each answer is one line.
    """
    settings = settings_of(context, model=model, dtype=dtype, device=device, drafter=drafter, attention=attention)
    options = given(mode=mode, documents=document, collection=collection, passages=passages)
    try:
        any_question = Question.model_validate({"question": "?", **options})
        sampling = Sampling(**given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed))
    except ValidationError as error:
        raise refusal(error, flag) from error
    from service.models import check_request

    check_request(settings)  # all refusals come before the long wait for a model
    with documents_of(settings) as shelf:
        any_question.check(shelf, LOCAL_OWNER)
    interactive = sys.stdin.isatty()
    with asyncio.Runner() as runner:  # runs no longer than an answer: between answers the terminal has Ctrl-C
        runtime = runner.run(started(settings))
        try:
            params = sampling.params(runtime.answerer.answer_tokens, runtime.engine.sampling_defaults)
            conversation = Conversation(runtime, runner, options, params, as_json)
            if interactive:
                note(f"{runtime.model_name}. {', '.join(COMMANDS)}; Ctrl-C stops an answer, twice leaves.")
                talk(conversation)
            else:
                read_all(conversation)
        finally:
            runner.run(runtime.stop())


class Conversation:
    """The turns so far, and what the last answer was made of.

    Attributes:
        answered, failed: questions.
    """

    def __init__(
        self,
        runtime: Runtime,
        runner: asyncio.Runner,
        options: Mapping[str, Any],
        params: SamplingParams,
        as_json: bool,
    ) -> None:
        """options: fields of every question."""
        self.answered = self.failed = 0
        self._runtime = runtime
        self._runner = runner
        self._options = options
        self._params = params
        self._as_json = as_json
        self._turns: list[Turn] = []
        self._last: Answer | None = None
        self._said = ""

    def take(self, line: str) -> bool:
        """Do what one line says; False where it says to leave. Raises KeyboardInterrupt: an answer was stopped."""
        line = line.strip()
        if line.startswith("/"):
            return self._command(line)
        if line:
            try:
                self._ask(line)
                self.answered += 1
            except Exception as error:
                known = translate(error)
                if known is None:
                    raise
                self.failed += 1
                self._refuse(line, known)
        return True

    def _command(self, line: str) -> bool:
        if line == "/quit":
            return False
        if line == "/new":
            self._turns, self._last = [], None
            note("A new conversation.")
        elif line == "/sources":
            self._show_sources()
        else:
            if line != "/help":
                error_line(f"there is no command {line[:40]}.")
            for name, meaning in COMMANDS.items():
                note(f"{name:9} {meaning}")
        return True

    def _ask(self, text: str) -> None:
        try:
            question = Question.model_validate({"question": text, "history": newest(self._turns), **self._options})
        except ValidationError as error:
            raise refusal(error, flag) from error
        self._said = ""
        try:
            answer = self._last = self._runner.run(self._answer(question))
            self._said = answer.answer
        finally:  # what was said before it was stopped is part of the conversation
            if self._said:
                turns = {"user": text, "assistant": self._said}
                self._turns += [Turn(role=role, content=said) for role, said in turns.items()]  # type: ignore[arg-type]
        if self._as_json:
            row = {key: value for key, value in asdict(answer).items() if key != "results"}
            emit_json({"question": text, **row}, line=True)
        else:
            print_support(answer)

    async def _answer(self, question: Question) -> Answer:
        from service.answering.answer import collect

        events = self._runtime.answerer.answer(question, self._params, LOCAL_OWNER)
        return await collect(events if self._as_json else shown(question, events, self))

    def write(self, data: Mapping[str, Any]) -> None:
        """Show the data of a `message` event."""
        self._said += data["text"]
        PlainText().write(data)

    def _refuse(self, text: str, error: FolioError) -> None:
        if self._as_json:
            emit_json({"question": text, "error": error.as_problem()}, line=True)
        else:
            error_line(error.detail)

    def _show_sources(self) -> None:
        results = self._last.results if self._last is not None else []
        if self._as_json:
            emit_json({"sources": results}, line=True)
        elif not results:
            note("Nothing has been read yet." if self._last is None else "Nothing was read.")
        else:
            emit_table(
                ["", "document", "place", "characters", "begins"],
                [
                    [number, one["name"], one.get("place"), f"{one['start']}-{one['end']}", _beginning(one.get("text"))]
                    for number, one in enumerate(results, start=1)
                ],
            )


def talk(conversation: Conversation) -> None:
    """A conversation at a terminal, with line editing. Raises KeyboardInterrupt for Ctrl-C twice."""
    with suppress(ImportError):  # Windows has none; its console edits lines itself
        import readline  # noqa: F401 - `input` uses it
    warned = False
    while True:
        try:
            line = _typed()
            warned = False
            if not conversation.take(line):
                return
        except EOFError:
            emit_text("\n")
            return
        except KeyboardInterrupt:
            if warned:
                raise
            warned = True
            note("\nStopped. Ctrl-C again, or /quit, leaves.")


def read_all(conversation: Conversation) -> None:
    """The questions of a pipe or a file, one a line; ends the command with its exit code."""
    for line in sys.stdin:
        if not conversation.take(line):
            break
    if conversation.failed:
        raise typer.Exit(Exit.PARTIAL if conversation.answered else Exit.FAILED)


def _typed() -> str:
    if sys.stdout.isatty():
        return input(PROMPT)
    console.print(PROMPT, end="")  # answers go elsewhere, and the prompt is none
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _beginning(text: str | None) -> str:
    """The first words of a passage; nothing for a document that was read whole."""
    words = " ".join((text or "").split())
    return words if len(words) <= 60 else f"{words[:59]}…"
