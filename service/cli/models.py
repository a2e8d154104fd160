"""`folio models`: what can be run by name, and what each needs in memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from service.cli.context import Dtype, JsonFlag, ModelName, settings_of
from service.cli.output import emit_json, emit_table
from service.errors import ModelError
from service.settings import EMBEDDED, Settings


@dataclass(frozen=True)
class Listed:
    """A model that `FOLIO_MODEL` may name.

    Attributes:
        name: to give to --model.
        state: ready, or one sentence that says what is wrong or missing.
        parameters, weight_bytes: of its weights as they run; None where they cannot be read.
        weights, dtype: what the weights are kept as, and what products are of (`Precision`).
        max_length: tokens that it was made for.
    """

    name: str
    state: str = "ready"
    architecture: str | None = None
    parameters: int | None = None
    weight_bytes: int | None = None
    weights: str | None = None
    dtype: str | None = None
    max_length: int | None = None


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("models")(models)


def models(context: typer.Context, model: ModelName = None, dtype: Dtype = None, as_json: JsonFlag = False) -> None:
    """List the models that can be had by name, and those in the folder of FOLIO_MODEL."""

    settings = settings_of(context, model=model, dtype=dtype)
    found = [_listed(name, settings) for name in _names(settings)]
    if as_json:
        emit_json({"models": [asdict(one) for one in found]})
        return
    emit_table(
        ["model", "parameters", "memory", "weights", "products", "tokens", "state"],
        [
            [
                one.name,
                _millions(one.parameters),
                _size(one.weight_bytes),
                one.weights,
                one.dtype,
                one.max_length,
                one.state,
            ]
            for one in found
        ],
    )


def _names(settings: Settings) -> list[str]:
    """The two by name, then what FOLIO_MODEL names and what lies beside it."""
    from service.engine.loading.gguf_file import gguf_models
    from service.engine.loading.sources import SMOLLM2

    path = Path(settings.model).expanduser()
    named = [] if settings.model in (EMBEDDED, SMOLLM2) else [settings.model]
    if path.is_file():
        beside = [str(file) for file in gguf_models(path.parent) if file != path]
    elif path.is_dir():
        inside = gguf_models(path)
        beside = [str(file) for file in inside] if not (path / "config.json").is_file() else []
        named = [] if beside else named
    else:
        beside = []
    return [EMBEDDED, SMOLLM2, *named, *beside]


def _listed(name: str, settings: Settings) -> Listed:
    from service.engine.loading.precision import choose, weight_bytes
    from service.engine.loading.sources import find_model
    from service.engine.loading.support import quantisation_of, refuse_by_config

    try:
        source = find_model(name)
        config = source.config
        refuse_by_config(name, config)
        engine = settings.engine.resolved()
        precision = choose(source, engine.dtype, engine.weights, engine.device, activations=engine.activations)
    except ModelError as error:
        return Listed(name, state=error.detail)
    text = config.get_text_config()
    count = source.num_parameters
    return Listed(
        name,
        architecture=text.model_type,
        parameters=count,
        weights=precision.weights,
        dtype=precision.dtype,
        weight_bytes=None if quantisation_of(config) else weight_bytes(source, precision),
        max_length=getattr(text, "max_position_embeddings", None),
    )


def _millions(count: int | None) -> str | None:
    return None if count is None else f"{count / 1e6:,.0f} M"


def _size(count: int | None) -> str | None:
    from service.engine.loading.device import gigabytes

    return None if count is None else gigabytes(count)
