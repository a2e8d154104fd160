"""`folio serve` and `folio generate`: the model, with and without a service around it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.context import (
    Activations,
    Attention,
    Backend,
    DeviceName,
    Drafter,
    Dtype,
    Host,
    JsonFlag,
    KVDtype,
    ModelName,
    Port,
    TensorParallel,
    Weights,
    settings_of,
)
from service.cli.output import emit_json, emit_text, working
from service.errors import Exit, GenerationFailed, InvalidRequest
from service.fields import encodable

if TYPE_CHECKING:
    from service.engine.async_engine import AsyncEngine
    from service.engine.params import SamplingParams
    from service.settings import Settings

MAKERS = "Default: as the model's makers say"


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("serve")(serve)
    app.command("generate")(generate)


def serve(
    context: typer.Context,
    host: Host = None,
    port: Port = None,
    model: ModelName = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    weights: Weights = None,
    activations: Activations = None,
    drafter: Drafter = None,
    attention: Attention = None,
    kv_dtype: KVDtype = None,
    backend: Backend = None,
    tp: TensorParallel = None,
) -> None:
    """Serve the page, the REST interface and the OpenAI routes until told to stop."""
    settings = settings_of(
        context,
        host=host,
        port=port,
        model=model,
        device=device,
        dtype=dtype,
        weights=weights,
        activations=activations,
        drafter=drafter,
        attention=attention,
        kv_dtype=kv_dtype,
        attention_backend=backend,
        tensor_parallel=tp,
    )
    from service.models import check_request

    check_request(settings)  # before anything slow is imported
    from service.api.server import run_server

    raise typer.Exit(_on_ranks(settings, lambda: run_server(settings)))


def generate(
    context: typer.Context,
    model: ModelName = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Text, tokenised as it is.")] = None,
    prompt_file: Annotated[Path | None, typer.Option("--prompt-file", help="The same from a file in UTF-8.")] = None,
    prompt_ids: Annotated[Path | None, typer.Option("--prompt-ids", help="JSON file: a list of token ids.")] = None,
    max_new: Annotated[int, typer.Option("--max-new", help="Most new tokens.")] = 256,
    temperature: Annotated[float | None, typer.Option(help=f"0 is greedy. {MAKERS}, else 0.")] = None,
    top_k: Annotated[int | None, typer.Option(help=f"Keep the k likeliest tokens; 0 keeps all. {MAKERS}.")] = None,
    top_p: Annotated[float | None, typer.Option(help=f"Keep the likeliest that reach this. {MAKERS}.")] = None,
    min_p: Annotated[float | None, typer.Option(help=f"Keep tokens of this share of the likeliest. {MAKERS}.")] = None,
    frequency_penalty: Annotated[float, typer.Option(help="Off a logit for each time the answer holds it.")] = 0.0,
    presence_penalty: Annotated[float, typer.Option(help="Off a logit if the answer holds the token.")] = 0.0,
    repetition_penalty: Annotated[
        float | None, typer.Option(help=f"Divides logits of tokens in prompt or answer. {MAKERS}.")
    ] = None,
    json_schema: Annotated[Path | None, typer.Option(help="File: the answer is JSON of this schema.")] = None,
    regex: Annotated[str | None, typer.Option(help="The answer matches this expression.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same tokens.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after end-of-sequence.")] = False,
    dtype: Dtype = None,
    weights: Weights = None,
    activations: Activations = None,
    device: DeviceName = None,
    drafter: Drafter = None,
    attention: Attention = None,
    kv_dtype: KVDtype = None,
    backend: Backend = None,
    tp: TensorParallel = None,
    as_json: JsonFlag = False,
) -> None:
    """Run the engine alone on one prompt."""
    if [prompt, prompt_file, prompt_ids].count(None) != 2:
        raise InvalidRequest("Give one of --prompt, --prompt-file and --prompt-ids.", param="prompt")
    if json_schema is not None and regex is not None:
        raise InvalidRequest("Give either --json-schema or --regex.", param="regex")
    ids = _read_ids(prompt_ids) if prompt_ids is not None else None
    text = _read_text(prompt_file) if prompt_file is not None else _typed(prompt or "")
    settings = settings_of(
        context,
        model=model,
        dtype=dtype,
        weights=weights,
        activations=activations,
        device=device,
        drafter=drafter,
        attention=attention,
        kv_dtype=kv_dtype,
        attention_backend=backend,
        tensor_parallel=tp,
    )
    from service.engine.params import SamplingParams
    from service.engine.sampling.grammars import Constraint

    constraint = Constraint("json_schema", _read_text(json_schema, "json-schema")) if json_schema is not None else None
    if regex is not None:
        constraint = Constraint("regex", regex)
    given: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    params = SamplingParams(
        max_tokens=max_new,
        **{name: value for name, value in given.items() if value is not None},
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        constraint=constraint,
        seed=seed,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
    )

    def lead() -> int:
        result = _generate(settings, ids, text, given, params, show=not as_json)
        if as_json:
            emit_json(result)
        return Exit.OK

    raise typer.Exit(_on_ranks(settings, lead))


def _on_ranks(settings: Settings, lead: Callable[[], int]) -> int:
    """Run ``lead`` here, with the other ranks of the model if it is shared; the exit code of this process."""
    if settings.tensor_parallel == 1:
        return lead()
    from service.engine.runner.ranks import run_ranks
    from service.engine.runner.tensor_parallel import follow
    from service.models import check_shares_of

    check_shares_of(settings)
    return run_ranks(settings.tensor_parallel, settings.engine.resolved().device, lead, follow)


def _generate(
    settings: Settings,
    ids: list[int] | None,
    text: str,
    given: Mapping[str, float | None],
    params: SamplingParams,
    show: bool,
) -> dict[str, Any]:
    """Load the model and run one prompt, of token ids or of text; with `show` its text goes to stdout as it comes.

    Args:
        given: of the sampling, what the model's makers have a say in (None: not given).
    """
    from service.models import check_request, load_engine

    check_request(settings, params.drafter, params.attention, params.constraint)
    with working(f"Loading {settings.model} …"):
        engine = load_engine(settings, first_token_timeout_s=math.inf, total_timeout_s=math.inf)
    if ids is None:
        tokenizer = engine.tokenizer
        if tokenizer is None:
            raise InvalidRequest(
                f"The model {settings.model!r} has no tokenizer.",
                hint="Use --prompt-ids.",
                param="prompt",
            )
        ids = list(tokenizer(text).input_ids)
    params = replace(params, **engine.sampling_defaults.fill(given))
    with engine:
        if show:
            asyncio.run(_show(engine, ids, params))
            return {}
        (result,) = engine.generate([ids], params)
    if result.error is not None:
        raise GenerationFailed(f"Generation failed: {result.error}.")
    return {
        "token_ids": result.token_ids,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "stats": result.stats,
    }


async def _show(engine: AsyncEngine, ids: list[int], params: SamplingParams) -> None:
    async with aclosing(engine.stream(ids, params)) as outputs:
        async for output in outputs:
            emit_text(output.text)
    emit_text("\n")


def _typed(prompt: str) -> str:
    try:
        return encodable(prompt)
    except ValueError as error:
        raise InvalidRequest(f"--prompt: {error}.", param="prompt") from error


def _read_text(path: Path, param: str = "prompt-file") -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}.", param=param) from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not UTF-8 text (byte {error.start}).", param=param) from error


def _read_ids(path: Path) -> list[int]:
    text = _read_text(path)
    try:
        ids = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{path} is not JSON: {error}.", param="prompt-ids") from error
    if isinstance(ids, dict):
        ids = ids.get("prompt_ids", ids.get("token_ids"))
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise InvalidRequest(f"{path} holds no list of token ids, such as [1, 15043].", param="prompt-ids")
    return ids
