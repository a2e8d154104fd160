"""Requests made from the OpenAPI description: whatever comes, no 500, and no answer the description does not allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings


@pytest.fixture(scope="module")
def description(start_service: Callable[..., Any], make_scripted: Any) -> Any:
    service = start_service(engine=make_scripted(), max_body_mb=1)
    service.ingest("a.txt", b"The bridge has seven arches.")
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


@pytest.fixture(scope="module")
def locked(start_service: Callable[..., Any], make_scripted: Any) -> Any:
    """The same service behind keys."""
    service = start_service(engine=make_scripted())
    service.runtime.keys.create("somebody")
    return service


def test_no_request_is_a_server_error(description: Any) -> None:
    asked = 0
    for found in description.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=3,
            phases=[Phase.generate],
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        def send(case: Any) -> None:
            response = case.call(timeout=30)
            assert response.status_code < 500, (case.method, case.path, response.text)
            if response.status_code >= 400:
                kind = response.headers["content-type"][0]
                assert kind.startswith(("application/problem+json", "application/json"))

        send()
        asked += 1
    assert asked >= 15


def test_no_route_of_the_description_gets_past_the_key(locked: Any) -> None:
    paths = locked.client.get("/openapi.json").json()["paths"]
    asked = 0
    for path, methods in paths.items():
        for method in methods:
            answer = locked.client.request(method, path.replace("{", "").replace("}", ""))
            open_route = path in ("/healthz", "/readyz", "/health", "/ping", "/version")
            assert answer.status_code == (200 if open_route else 401), (method, path)
            asked += 1
    assert asked >= 15
