"""`folio top`: the figures of a running service, between two looks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from service.cli.top import Figures, Look, read

from ..api.conftest import make_engine, start_service  # noqa: F401


def test_rates_are_of_the_time_between_and_shares_too() -> None:
    before = {"prompt_tokens_total": 100, "prefix_cache_queries_total": 100, "prefix_cache_hits_total": 0}
    after = {"prompt_tokens_total": 300, "prefix_cache_queries_total": 300, "prefix_cache_hits_total": 150}
    figures = Figures.between(Look(1.0, "m", before), Look(3.0, "m", after | {"ready": 1, "num_requests_running": 2}))
    assert (figures.prompt_tokens_per_s, figures.prefix_hits) == (100.0, 0.75)
    assert (figures.ready, figures.running, figures.accepted) == (True, 2, None)
    still = Figures.between(Look(1.0, "m", after), Look(2.0, "m", after))
    assert (still.prompt_tokens_per_s, still.prefix_hits) == (0.0, 0.5), "of all time, where nothing came"


def test_labels_are_summed_and_http_is_left_out() -> None:
    text = (
        '# TYPE folio:request_success counter\nfolio:request_success_total{model_name="m",finished_reason="stop"} 2\n'
        'folio:request_success_total{model_name="m",finished_reason="length"} 3\n'
        '# TYPE folio:http_requests counter\nfolio:http_requests_total{route="/metrics"} 9\n'
    )
    found = read(text)
    assert (found.model, found.totals) == ("m", {"request_success_total": 5.0})


def test_a_running_service_is_looked_at(
    start_service: Callable[..., Any],  # noqa: F811
    make_scripted: Any,
    folio: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = start_service(engine=make_scripted())
    looked = ("top", "--url", service.url, "--interval", "0.2")
    code, out, said = folio(*looked, "--json")
    assert code == 0, said
    assert (json.loads(out)["ready"], json.loads(out)["running"]) == (True, 0)
    code, out, _ = folio(*looked, "--once")
    assert "requests                  0 run, 0 wait" in out
    secret = service.runtime.keys.create("operator", scopes=["metrics"])[1]
    code, _, said = folio(*looked, "--once")
    assert (code, "scope metrics" in said) == (1, True)
    monkeypatch.setenv("FOLIO_API_KEY", secret)
    assert folio(*looked, "--once")[0] == 0
    code, _, said = folio("top", "--url", "http://127.0.0.1:9", "--once")
    assert (code, said.count("No service answers")) == (1, 1)
