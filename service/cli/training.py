"""`folio train`: a drafter that learns to guess for one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from drafters.options import TRAINABLE
from service.cli.context import JsonFlag, settings_of
from service.cli.output import emit_json, note
from service.errors import InvalidRequest


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("train")(train)


def train(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help=f"{', '.join(TRAINABLE)}; or judge.")],
    target: Annotated[str, typer.Option("--target", "--model", "-m", help="The model that it is to guess for.")],
    data: Annotated[
        list[Path], typer.Option(help="Texts (.txt, .md, .rst) and prompts (.jsonl), or folders; may be repeated.")
    ],
    output: Annotated[Path | None, typer.Option(help="Folder of the drafter; default: below the data folder.")] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Of training; 0: as many as STEPS take.")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Of the optimiser; 0: as many as MINUTES allow.")] = 0,
    tokens: Annotated[int, typer.Option(min=1000, help="Of all training sequences together, about.")] = 100_000,
    answers: Annotated[float, typer.Option(min=0, max=1, help="Share that the model's own answers have.")] = 0.5,
    draft_vocab: Annotated[int, typer.Option(min=0, help="Token ids that it can guess; 0: all.")] = 8192,
    option: Annotated[
        list[str] | None, typer.Option(help="Of the drafter, KEY=NUMBER: depth, window, layers, …; may be repeated.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a step.")] = 4,
    learning_rate: Annotated[float, typer.Option(min=0, help="At its height; 0: the drafter's own.")] = 0,
    states: Annotated[
        Path | None, typer.Option(help="Folder of the model's states; default: below the data folder.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Train a drafter for a model, on texts and on the model's own answers; or the judge that stands beside one.

    The model's states are kept on disk, and a training that was stopped goes on where it was: give the same command
    again. The finished folder is what FOLIO_DRAFT_MODEL names. A judge (`trained:judge=0.5`, lossy) learns from lines
    of JSON, {"prompt", "answer", "wrong": [parts of the answer]}, and is written to the folder of a drafter, OUTPUT.
    """
    if not (minutes or steps or name == "judge"):
        raise InvalidRequest("Say how long to train: --minutes or --steps.", param="minutes")
    settings = settings_of(context)
    own = dict(map(_option, option or []))
    from drafters.training.judge import train_judge
    from drafters.training.run import Material, Recipe, train
    from drafters.training.states import Drawn
    from service.engine.async_engine import AsyncEngine
    from service.engine.drafting.teacher import EngineTeacher

    folder = output or settings.home / "drafters" / f"{name}-{Path(target).stem}"
    material = Material(tuple(data), tokens, answers, Drawn(seed=seed))
    recipe = Recipe(steps, minutes, batch, learning_rate=learning_rate, seed=seed)
    engine = settings.engine.model_copy(update={"draft_model": None, "attention": "dense", "prefix_cache": False})
    with AsyncEngine.from_pretrained(target, engine) as opened:
        teacher = EngineTeacher(opened)
        if name == "judge":
            figures = train_judge(teacher, data, folder, note)
        else:
            own = {"draft_vocab": draft_vocab if draft_vocab < teacher.vocab_size else 0, **own}
            figures = train(name, teacher, material, recipe, folder, states or settings.home / "states", note, own)
    if as_json:
        emit_json(figures)
    else:
        note(f"The drafter is in {folder}; FOLIO_DRAFT_MODEL={folder} has it used.")


def _option(text: str) -> tuple[str, Any]:
    """KEY=NUMBER. Raises InvalidRequest for another form."""
    key, _, value = text.partition("=")
    try:
        return key.strip().replace("-", "_"), int(value)
    except ValueError:
        raise InvalidRequest(f"--option takes KEY=NUMBER, not {text!r}.", param="option") from None
