"""``folio calibrate``: what each head of a model does, written as the files that sparse attention reads.

Into the output folder go ``minference.json`` (a pattern a query head, MInference's format), ``duo.tsv`` and
``config.json`` (alpha a KV head, DuoAttention's format), ``report.json`` with every score, and a picture a layer. With
``--auto`` these and the other policies are then tried on the text, and ``crossovers.json`` says which pays from which
length on (`eval.auto_table`).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eval.errors import EvalError
from eval.figures import command_line, git_sha, machine, named, write_atomically

if TYPE_CHECKING:
    from service.engine.loading.checkpoint import LoadedModel
    from sparse_attn.plan.calibrate import HeadChoice
    from sparse_attn.plan.capture import Captured

POLICIES = ("streaming", "trianglemix", "trianglemix:deep=1.0,last=256", "xattention", "flexprefill", "skip")
"""Tried for the table of `auto`, beside those that the other files were made for."""
WINDOWS = 4
PICTURE_BLOCKS = 96  # blocks a side of a head's picture, about


def command(
    model: Annotated[str, typer.Option(help="embedded, a folder, or a hub id.")] = "embedded",
    text: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Text to look at; default: made text that asks for recall."),
    ] = None,
    length: Annotated[int, typer.Option(min=512, help="Tokens of text.")] = 8192,
    budget: Annotated[int, typer.Option(min=256, help="Keys a row may visit in prefill, for the search.")] = 1024,
    sink: Annotated[int, typer.Option(min=1, help="First tokens that a streaming head sees.")] = 128,
    local: Annotated[int, typer.Option(min=1, help="Last tokens that a streaming head sees.")] = 256,
    gates: Annotated[int, typer.Option(min=0, help="Steps of DuoAttention's gate training; 0: none.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("calibration"),
    pictures: Annotated[bool, typer.Option(help="Draw each head's attention.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the made text.")] = 0,
    dtype: Annotated[str, typer.Option(help="Precision of the model; gates are trained in float32.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    auto: Annotated[bool, typer.Option("--auto", help="Also make a table for the policy auto: needs --text.")] = False,
    lengths: Annotated[str, typer.Option(help="Prompt lengths of that table, separated by commas.")] = "2048,4096,8192",
    policies: Annotated[
        str, typer.Option(help="Policies tried for it, separated by semicolons; default: those of prefill.")
    ] = "",
    most: Annotated[float, typer.Option(min=0.0, help="Share by which perplexity may rise in it.")] = 0.01,
    windows: Annotated[int, typer.Option(min=2, help="Windows of the text for each length of it.")] = WINDOWS,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take up the report in OUTPUT: measure what it lacks.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Find each head's best sparse pattern at equal cost and how much each KV head needs the whole context."""
    from service.engine.loading.checkpoint import load_model
    from service.engine.options import parse_policy

    words = text.read_text(encoding="utf-8") if text is not None else None
    if auto and words is None:
        raise EvalError("--auto needs a text to try the policies on", hint="Give a long one with --text.", param="text")
    if wrong := next((length for length in lengths.split(",") if not length.strip().isdigit()), None):
        raise EvalError(f"{wrong!r} is no length", hint="Numbers, separated by commas.", param="lengths")
    tried = [int(length) for length in lengths.split(",")]
    candidates = [policy.strip() for policy in policies.split(";") if policy.strip()]
    for policy in candidates:
        parse_policy(policy, param="policies")
        if "+" in policy:
            raise EvalError(f"{policy!r} is two policies; the table is of prefill", hint="Give one.", param="policies")
    loaded = load_model(model, "float32" if gates and dtype == "auto" else dtype, device)
    if auto and max(tried) >= loaded.max_len:
        raise EvalError(f"The model holds {loaded.max_len} tokens; ask for --lengths below that.", param="lengths")
    search = {"length": length, "budget": budget, "sink": sink, "local": local, "gates": gates, "seed": seed}
    made = {"text_sha256": hashlib.sha256(words.encode()).hexdigest() if words is not None else None, **search}
    told = {"device": device, "dtype": str(loaded.dtype), **made}
    bounds: dict[str, Any] = {"most": most, "windows": windows}
    report = _earlier(output, loaded, told, bounds) if resume else None
    if report is None:
        report = {**run(loaded, text=words, output=output, pictures=pictures, **search), "settings": told}
        _write_json(output / "report.json", report)
    if auto and words is not None:
        known = report.get("auto", {}).get("rows", ())

        def keep(found: dict[str, Any]) -> None:
            report["auto"] = {**bounds, **found}
            _write_json(output / "report.json", report)

        keep(make_table(loaded, words, tried, output, candidates, **bounds, known=known, keep=keep))
    if as_json:
        typer.echo(json.dumps(report, indent=1))
        return
    for layer in report["layers"]:
        for head, choice in enumerate(layer["heads"]):
            typer.echo(
                f"layer {layer['layer']:2d} head {head:2d}: {choice['pattern']}, error {choice['error']:.3f}, "
                f"recall {choice['recall']:.3f}, density {choice['density']:.3f}"
            )
        typer.echo(f"layer {layer['layer']:2d} alpha: {' '.join(f'{alpha:.3f}' for alpha in layer['alpha'])}")
    for row in report.get("auto", {}).get("table", ()):
        typer.echo(f"auto from {row['min_length']} tokens on: {row['policy']}")
    typer.echo(f"files in {output}")


def run(
    loaded: LoadedModel,
    *,
    output: Path,
    text: str | None = None,
    length: int = 8192,
    budget: int = 1024,
    sink: int = 128,
    local: int = 256,
    gates: int = 0,
    pictures: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Calibrate a loaded model and write the files; returns the report.

    Raises:
        EvalError: the model has no tokenizer, or the text is too short.
    """
    from sparse_attn.plan.calibrate import area_scores, search_patterns, streaming_error
    from sparse_attn.plan.capture import capture
    from sparse_attn.plan.formats import write_duo, write_minference

    began = time.perf_counter()
    length = min(length, loaded.max_len)
    ids = _token_ids(loaded, text, length, seed)
    captured = capture(loaded.model, ids)
    trained = _train_gates(loaded, gates, sink, local, min(length, 2048), text) if gates else None
    output.mkdir(parents=True, exist_ok=True)
    layers: list[dict[str, Any]] = []
    choices: list[list[HeadChoice]] = []
    for layer in captured:
        choices.append(search_patterns(layer, budget))
        streaming = streaming_error(layer, sink, local)
        layers.append(
            {
                "layer": layer.layer,
                "heads": [{**asdict(c), "pattern": str(c.pattern)} for c in choices[-1]],
                "alpha": trained[layer.layer] if trained else streaming,
                "streaming_error": streaming,
                "area": area_scores(layer, *_rotary(loaded.model, layer.layer, len(ids))),
            }
        )
    write_minference(
        output / "minference.json",
        [[c.pattern for c in layer] for layer in choices],
        [[c.recall for c in layer] for layer in choices],
    )
    write_duo(output / "duo.tsv", [layer["alpha"] for layer in layers])
    _write_json(output / "config.json", {"sink_size": sink, "recent_size": local})
    report: dict[str, Any] = {
        "model": named(loaded.name),
        "fingerprint": loaded.fingerprint,
        "command": command_line(),
        "git": git_sha(),
        "machine": machine(),
        "tokens": len(ids),
        "budget": budget,
        "alpha_from": "trained gates" if trained else "streaming error",
        "layers": layers,
        "seconds": round(time.perf_counter() - began, 1),
    }
    if pictures:
        report["pictures"] = [_draw(layer, own, output).name for layer, own in zip(captured, choices, strict=True)]
    _write_json(output / "report.json", report)
    return report


def _earlier(
    output: Path, loaded: LoadedModel, settings: dict[str, Any], bounds: dict[str, Any]
) -> dict[str, Any] | None:
    """The report in a folder, which must be of the same model and settings; None where there is none."""
    path = output / "report.json"
    if not path.is_file():
        return None
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    made = {"fingerprint": report.get("fingerprint"), **report.get("settings", {}), **report.get("auto", {})}
    wanted = {"fingerprint": loaded.fingerprint, **settings} | {n: v for n, v in bounds.items() if n in made}
    for name, value in wanted.items():
        if made.get(name) != value:
            raise EvalError(f"{path} was made with {name}={made.get(name)}, not {value}", hint="Give another --output.")
    return report


def make_table(
    loaded: LoadedModel,
    text: str,
    lengths: Sequence[int],
    output: Path,
    policies: Sequence[str] = (),
    *,
    most: float,
    windows: int = WINDOWS,
    known: Sequence[dict[str, Any]] = (),
    keep: Callable[[dict[str, Any]], object] = lambda found: None,
) -> dict[str, Any]:
    """Try policies on a text and write ``crossovers.json``; returns its rows, and what they were chosen from.

    Args:
        policies: by default those that need nothing, and those that read the files of `run` in ``output``.
        most, windows, known: as `eval.auto_table.measure` has them; ``windows`` is its ``count``.
        keep: is given the rows so far after each.

    Raises:
        EvalError: the text is shorter than two windows of a length.
    """
    import torch

    from eval.auto_table import measure, table_of, write_table
    from service.engine.async_engine import AsyncEngine
    from service.engine.config import EngineConfig
    from service.engine.engine import Engine

    longest = max(lengths)
    files = (f"minference:file={output / 'minference.json'}", f"lserve:heads={output / 'duo.tsv'}")
    memory = int(2.5 * (longest + 2048) * loaded.kv_shape.bytes_per_token(torch.float32))
    config = EngineConfig.of(kv_memory=memory, prefix_cache=False, drafter="none", attention="dense")
    encode = _encoder(loaded)
    ids = encode(text)
    with AsyncEngine(Engine(loaded, config)) as engine:
        tried = policies or (*POLICIES, *files)
        rows = measure(
            engine,
            encode,
            ids,
            lengths,
            tried,
            most=most,
            count=windows,
            known=known,
            keep=lambda rows: keep({"rows": rows}),
        )
    table = table_of(rows, most)
    write_table(output / "crossovers.json", torch.device(loaded.device).type, table, loaded)
    return {"rows": rows, "table": table}


def _token_ids(loaded: LoadedModel, text: str | None, length: int, seed: int) -> list[int]:
    from sparse_attn.plan.calibrate import retrieval_text

    encode = _encoder(loaded)
    if text is None:
        return retrieval_text(encode, length, seed)
    ids = encode(text)[:length]
    if len(ids) < 512:
        raise EvalError(f"The text has {len(ids)} tokens; calibration needs 512 or more, best as long as the prompts.")
    return ids


def _encoder(loaded: LoadedModel) -> Any:
    if loaded.tokenizer is None:
        raise EvalError(f"The model {loaded.name!r} has no tokenizer, so there is no text to calibrate it on.")
    return lambda text: loaded.tokenizer.encode(text, add_special_tokens=False)


def _rotary(model: Any, layer: int, length: int) -> tuple[Any, Any]:
    """cos, sin [length, D] of a layer's rotary embedding; 1 and 0 for a layer that does without."""
    import torch

    positions = torch.arange(length, device=model.device)[None]
    hidden = torch.zeros(1, 1, 1, device=model.device, dtype=torch.float32)
    cos, sin = model.base_model.rotary_emb(hidden, positions)
    if not getattr(model.base_model.layers[layer].self_attn, "use_rope", True):
        return torch.ones_like(cos[0]), torch.zeros_like(sin[0])
    return cos[0], sin[0]


def _train_gates(
    loaded: LoadedModel, steps: int, sink: int, local: int, length: int, filler: str | None
) -> list[list[float]]:
    from sparse_attn.plan.calibrate import retrieval_text, train_gates

    encode = _encoder(loaded)

    def texts() -> Iterator[Sequence[int]]:
        for seed in range(1, steps + 1):
            yield retrieval_text(encode, length, seed, filler)

    def progress(step: int, loss: float) -> None:
        if step % 10 == 0:
            typer.echo(f"gates: step {step} of {steps}, loss {loss:.4f}", err=True)

    return train_gates(loaded.model, texts(), sink=sink, local=local, steps=steps, progress=progress)


def _draw(layer: Captured, choices: Sequence[HeadChoice], folder: Path) -> Path:
    """Every head's attention in blocks (square root of its weight, by antidiagonal sums) and its choice."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from sparse_attn.plan.grid import Grid
    from sparse_attn.plan.score import antidiagonal
    from sparse_attn.rows import SequenceRows

    rows = SequenceRows(layer.q, layer.k, layer.scale)
    block = max(8, 8 * math.ceil(rows.length / PICTURE_BLOCKS / 8))
    heads = range(rows.q.shape[1])
    weights = antidiagonal(rows, Grid.of(rows, block, block), 8, heads).sqrt().cpu()
    columns = min(8, len(heads))
    lines = math.ceil(len(heads) / columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(2.1 * columns, 2.5 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for head, axis in zip(heads, axes.flat, strict=False):
        axis.imshow(weights[head], cmap="magma", interpolation="nearest", aspect="auto")
        choice = choices[head]
        axis.set_title(f"head {head}: {_short(choice)}\nerror {choice.error:.2f}", fontsize=7)
    figure.suptitle(f"layer {layer.layer}: attention in blocks of {block} tokens", fontsize=9)
    figure.tight_layout()
    path = folder / f"layer_{layer.layer:02d}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _short(choice: HeadChoice) -> str:
    from sparse_attn.plan.patterns import AShape, BlockTopK, VerticalSlash

    match choice.pattern:
        case AShape(sink, local):
            return f"A-shape {sink}+{local}"
        case VerticalSlash(vertical, slash):
            return f"vertical {vertical}, slash {slash}"
        case BlockTopK(blocks):
            return f"{blocks} blocks"
        case other:
            return type(other).__name__


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


app = typer.Typer(add_completion=False)
app.callback(invoke_without_command=True)(command)
