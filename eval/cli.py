"""``folio eval`` with its commands, and ``folio bench`` where it is. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from eval.errors import EvalError
from eval.harness.options import RunOptions
from eval.options import command, read
from eval.qa.options import QaOptions
from eval.qa.prompt_options import PromptOptions

app = typer.Typer(no_args_is_help=True, help="Measure answers: InfiniteBench, generated tasks, comparisons, reports.")


@dataclass(frozen=True)
class _RunCommand(RunOptions):
    """Answer tasks with one or more engines; resumes what an earlier run of the same arguments left."""

    config: Annotated[Path | None, typer.Option(help="YAML with any of these options; flags override it.")] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False


def _run(flags: dict[str, Any]) -> None:
    config, as_json = flags.pop("config", None), flags.pop("as_json", False)
    answered = [_run_one(options, as_json) for options in RunOptions.load(config, flags).of_each_model()]
    if not any(answered):
        raise EvalError("nothing was asked: no model holds so many tokens", hint="Ask for less.", param="length")


def _run_one(options: RunOptions, as_json: bool) -> bool:
    """One model's part, of which nothing stays in memory; whether it was asked anything."""
    from eval.figures import command_line
    from eval.harness.plan import build_plan
    from eval.harness.progress import TextProgress
    from eval.harness.run import run as run_plan

    with build_plan(options, command_line()) as plan:
        summary = run_plan(plan, TextProgress())
    for task, lacking in plan.left_out.items():
        typer.echo(f"{options.folder}: left out: {task} {lacking}", err=True)
    for problem in plan.problems[:20]:
        typer.echo(f"line {problem.line}: {problem.message}", err=True)
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False))
    else:
        _print_cells(summary["cells"])
        typer.echo(f"results in {options.folder}", err=True)
    return bool(summary["cells"])


app.command("run")(command(_RunCommand, _run, defaults=False))


def _prompts(flags: dict[str, Any]) -> None:
    from eval.qa.prompts import run as compare_prompts

    compare_prompts(read(PromptOptions, flags))


app.command("prompts")(command(PromptOptions, _prompts))


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="Predictions, one JSON object a line.")],
    task: Annotated[str, typer.Option(help="The task that the file belongs to.")],
    scorer: Annotated[str, typer.Option(help="official_v1, official_v2 or fixed.")] = "official_v1",
    model_name: Annotated[
        str | None, typer.Option(help="As the official script names it (gpt4 matters); default: the file's folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score any file of predictions; broken lines are named on stderr and counted."""
    from eval.scoring import score_file

    scored = score_file(file, task, scorer, model_name=model_name)
    for problem in scored.problems:
        typer.echo(f"{file}, line {problem.line}: {problem.message}", err=True)
    if as_json:
        typer.echo(json.dumps(scored.as_json(), ensure_ascii=False))
    else:
        typer.echo(f"{task} {scorer}: {scored.score:.4f} % of {scored.n} ({len(scored.problems)} problems)")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of one engine, DIR/ENGINE.")],
    b: Annotated[Path, typer.Argument(help="Folder of the other.")],
    lossless: Annotated[
        bool | None,
        typer.Option("--lossless/--lossy", help="Whether ids must agree; default: by the engines' descriptions."),
    ] = None,
    scorer: Annotated[str, typer.Option(help="Scorer of the printed table.")] = "official_v1",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two engines paired by example; fails where a lossless pair differs in a token."""
    from eval.harness.compare import compare as compare_folders

    found = compare_folders(a, b, lossless=lossless)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        _print_comparison(found, scorer)
    if found["lossless"] and found["divergences"]:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of `folio eval run`, of one model or of several.")],
) -> None:
    """Write the scoreboard: report.md, report.csv, pictures, and report.html."""
    from eval.harness.report import report as write_report

    for path in write_report(folder):
        typer.echo(str(path))


@app.command()
def instructions(
    data: Annotated[Path, typer.Argument(help="Questions and their paragraphs, in SQuAD's format.")],
    output: Annotated[Path, typer.Option(help="File of prompts, .jsonl, for `folio train --data`.")],
    german: Annotated[Path | None, typer.Option(help="The same in German, to be translated.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts.")] = 560,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
) -> None:
    """Write prompts of many kinds, whose answers by a model teach its drafter."""
    from eval.figures import write_atomically
    from eval.qa.dataset import load
    from eval.tasks.instructions import instructions as make

    made = make(count, seed, load(data), load(german) if german else None)
    write_atomically(output, "".join(json.dumps({"prompt": one}, ensure_ascii=False) + "\n" for one in made))
    typer.echo(f"{len(made)} prompts in {output}", err=True)


@app.command()
def support(
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Precision and recall of the rule that says which claims of an answer the documents carry."""
    from eval.figures import command_line
    from eval.qa.support import lines, measure

    found = {"command": command_line(), "seed": 0, **measure()}
    if output is not None:
        output.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    typer.echo(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(lines(found)))


def _qa(flags: dict[str, Any]) -> None:
    from eval.qa.report import lines
    from eval.qa.run import run as run_qa

    options = read(QaOptions, flags)
    for line in lines(run_qa(options)):
        typer.echo(line)
    typer.echo(f"results in {options.output}", err=True)


app.command("qa")(command(QaOptions, _qa))


@app.command()
def conversation(
    data: Annotated[list[Path] | None, typer.Option(help="Questions of our own format; default: those kept.")] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Also let it put follow-ups into whole questions.")
    ] = None,
    library: Annotated[Path, typer.Option(help="Folder of the documents' library.")] = Path("conversation"),
    output: Annotated[Path | None, typer.Option(help="File; default: eval/results/conversation.json.")] = None,
) -> None:
    """How well second turns find their passages, by what is searched for: as they stand, by rule, by a model."""
    from eval.figures import command_line, save_result
    from eval.qa.conversation import DATA, lines, measure
    from service.libraries import embedder_of
    from service.settings import load_settings

    rows = measure(data or DATA, library, embedder_of(load_settings()), model or ())
    for line in lines(rows):
        typer.echo(line)
    typer.echo(str(save_result("conversation", {"rows": rows}, command_line(), output)), err=True)


@app.command()
def parsing(
    clones: Annotated[list[Path], typer.Argument(help="Clones of the repositories that real_files.json names.")],
    split: Annotated[str, typer.Option(help="'held out' or 'development'.")] = "held out",
    output: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Whether menus, headers and footers of real web pages and papers stand among the first hits."""
    from eval.figures import command_line, save_result
    from eval.parsing.surroundings import measure, summary

    figures = measure(clones, split)
    typer.echo(summary(figures))
    typer.echo(str(save_result("parsing", figures, command_line(), output)), err=True)


def _print_cells(cells: list[dict[str, Any]]) -> None:
    """One line a cell: what failed, the running scorer's mean, and the medians of the times."""
    from eval.harness.report import row_of
    from eval.harness.run import SHOWN

    for row in map(row_of, cells):
        where = f"{row['engine']} {row['task']} {row['length'] or 'whole'}"
        score = f"{row[SHOWN]:6.2f} ± {row[f'{SHOWN}_stderr']:5.2f}"
        times = [("TTFT", row["ttft_s"], "s"), ("decode", row["decode_tokens_per_s"], "tokens/s")]
        said = ", ".join(f"{name} {value:.2f} {unit}" for name, value, unit in times if value is not None)
        typer.echo(f"{where:44} {score} of {row['n']} ({row['failed']} failed)  {said}")


def _print_comparison(found: dict[str, Any], scorer: str) -> None:
    kind = "lossless" if found["lossless"] else "lossy"
    typer.echo(f"{found['a']} against {found['b']} ({kind}): {found['identical']} of {found['pairs']} pairs identical")
    for divergence in found["divergences"][:5]:
        prompt = "" if divergence["same_prompt"] else ", prompts differ"
        typer.echo(
            f"  {divergence['file']} id {divergence['id']}: token {divergence['at']}: "
            f"{divergence['a']} against {divergence['b']}{prompt}"
        )
    if len(found["divergences"]) > 5:
        typer.echo(f"  and {len(found['divergences']) - 5} more")
    for task, figures in [*found["tasks"].items(), ("all", found["all"])]:
        one, test = figures[scorer], figures[scorer]["mcnemar"]
        typer.echo(
            f"  {task}: {one['a']:.2f} → {one['b']:.2f}, {one['delta']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}], "
            f"only a right {test['only_a']}, only b right {test['only_b']}, p {test['p']:.3f}"
        )


class NeedsCheckout(TyperGroup):
    """What ``folio bench`` is where the benchmarks are not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        raise EvalError("The installed package has no benchmarks.", hint="Run `folio bench` in a checkout of Folio.")


def bench_app() -> typer.Typer:
    """The group of benchmarks, or what says that they are not here."""
    if find_spec("eval.bench") is None:
        missing = typer.Typer(cls=NeedsCheckout, help="Measure speed and memory; needs a checkout.")
        missing.callback()(lambda: None)
        return missing
    from eval.bench.cli import app

    return app


bench = bench_app()
