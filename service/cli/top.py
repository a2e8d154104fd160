"""`folio top`: what a running service is doing, on the terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.context import JsonFlag, settings_of
from service.cli.output import emit_json, emit_text
from service.errors import FolioError, Unavailable

if TYPE_CHECKING:
    import httpx
    from rich.console import RenderableType

BAR = 30
"""characters of a bar"""


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("top")(top)


def top(
    context: typer.Context,
    url: Annotated[str | None, typer.Option("--url", help="Of the service; default: of the settings.")] = None,
    interval: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, show it, and end.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Requests, tokens, pages of KV, drafts and the prefix cache of a running service, live.

    The key, where the service has keys, is FOLIO_API_KEY; it needs the scope metrics.
    """
    settings = settings_of(context)
    address = (url or f"http://{settings.host}:{settings.port}").rstrip("/")
    key = settings.api_key.get_secret_value() if settings.api_key else None
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(headers=headers, timeout=10) as client:
        before = look(client, address)
        time.sleep(interval)
        now = look(client, address)
        if as_json or once:
            figures = Figures.between(before, now)
            emit_json(figures.__dict__) if as_json else emit_text(_plain(figures))
            return
        from rich.live import Live

        with Live(screen=True, auto_refresh=False) as live:
            while True:
                live.update(_shown(address, Figures.between(before, now)), refresh=True)
                time.sleep(interval)
                before, now = now, look(client, address)


@dataclass(frozen=True)
class Look:
    """The figures of a service at a time; totals by name, summed over their labels."""

    at: float
    model: str
    totals: Mapping[str, float]


@dataclass(frozen=True)
class Figures:
    """Between two looks. Shares are 0 to 1, None where nothing was counted."""

    model: str
    ready: bool
    running: int
    waiting: int
    finished_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    first_token_s: float | None
    kv_pages: float
    prefix_hits: float | None
    drafted_per_s: float
    accepted: float | None
    preemptions: int
    failed: int

    @classmethod
    def between(cls, before: Look, now: Look) -> Figures:
        passed = max(now.at - before.at, 1e-9)

        def gained(name: str) -> float:
            return now.totals.get(name, 0.0) - before.totals.get(name, 0.0)

        def share(part: str, whole: str) -> float | None:
            """Of the time between, else of all time."""
            if gained(whole):
                return gained(part) / gained(whole)
            return now.totals.get(part, 0.0) / now.totals[whole] if now.totals.get(whole) else None

        return cls(
            model=now.model,
            ready=bool(now.totals.get("ready")),
            running=int(now.totals.get("num_requests_running", 0)),
            waiting=int(now.totals.get("num_requests_waiting", 0)),
            finished_per_s=gained("request_success_total") / passed,
            prompt_tokens_per_s=gained("prompt_tokens_total") / passed,
            output_tokens_per_s=gained("generation_tokens_total") / passed,
            first_token_s=share("time_to_first_token_seconds_sum", "time_to_first_token_seconds_count"),
            kv_pages=now.totals.get("kv_cache_usage_perc", 0.0),
            prefix_hits=share("prefix_cache_hits_total", "prefix_cache_queries_total"),
            drafted_per_s=gained("spec_decode_num_draft_tokens_total") / passed,
            accepted=share("spec_decode_num_accepted_tokens_total", "spec_decode_num_draft_tokens_total"),
            preemptions=int(now.totals.get("num_preemptions_total", 0)),
            failed=int(now.totals.get("request_failure_total", 0)),
        )


def look(client: httpx.Client, address: str) -> Look:
    """Raises Unavailable: no service answers there. FolioError: it refuses."""
    import httpx

    try:
        answer = client.get(f"{address}/metrics")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(f"No service answers at {address}: {error}.", hint="Name it with --url.") from error
    if answer.status_code in (401, 403):
        raise FolioError(
            f"{address} shows its figures to keys with the scope metrics.", hint="Set FOLIO_API_KEY to one."
        )
    if not answer.is_success:
        raise FolioError(f"{address}/metrics answered {answer.status_code}.", hint="Is it a service of Folio?")
    return read(answer.text)


def read(text: str) -> Look:
    """The figures in Prometheus' format; requests over HTTP are left out, which are ours too."""
    from prometheus_client.parser import text_string_to_metric_families

    totals: dict[str, float] = {}
    model = ""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("folio:")
            if name.startswith("http_") or name.endswith("_bucket"):
                continue
            totals[name] = totals.get(name, 0.0) + sample.value
            model = sample.labels.get("model_name", model)
    return Look(time.monotonic(), model, totals)


def _lines(figures: Figures) -> list[tuple[str, str, float | None]]:
    """Name, value and share of each line."""
    first = f"{figures.first_token_s:.2f} s" if figures.first_token_s is not None else "–"
    return [
        ("requests", f"{figures.running} run, {figures.waiting} wait, {figures.finished_per_s:.1f} end a second", None),
        ("first token", first, None),
        ("tokens read", f"{figures.prompt_tokens_per_s:,.0f} a second", None),
        ("tokens written", f"{figures.output_tokens_per_s:,.1f} a second", None),
        ("pages of KV", _share(figures.kv_pages), figures.kv_pages),
        ("found in the prefix cache", _share(figures.prefix_hits), figures.prefix_hits),
        ("drafts", f"{figures.drafted_per_s:,.1f} tokens a second", None),
        ("accepted", _share(figures.accepted), figures.accepted),
        ("put back, failed", f"{figures.preemptions}, {figures.failed}", None),
    ]


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _plain(figures: Figures) -> str:
    state = "ready" if figures.ready else "not ready"
    lines = [("model", f"{figures.model or '–'}, {state}"), *((name, value) for name, value, _ in _lines(figures))]
    return "".join(f"{name:<26}{value}\n" for name, value in lines)


def _shown(address: str, figures: Figures) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    state = "[green]ready" if figures.ready else "[yellow]not ready"
    title = f"{escape(figures.model or '–')} at {escape(address)} · {state}"
    table = Table(box=None, show_header=False, title=title, pad_edge=False)
    for name, value, share in _lines(figures):
        filled = 0 if share is None else round(min(share, 1.0) * BAR)
        bar = "" if share is None else f"[cyan]{'█' * filled}[/][dim]{'░' * (BAR - filled)}[/]"
        table.add_row(f"[dim]{name}", f"[bold]{value}", bar)
    return table
