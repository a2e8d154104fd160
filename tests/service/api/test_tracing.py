"""A question's span and those of its stages, as OpenTelemetry's SDK exports them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from service.api.tracing import Tracing
from service.errors import InvalidRequest
from service.settings import load_settings

sdk = pytest.importorskip("opentelemetry.sdk.trace")
STAGES = ["find evidence", "read prompt", "write answer", "check citations"]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def told(start_service: Callable[..., Any], make_scripted: Any) -> tuple[Any, Any]:
    """A service with a document, and where its spans end."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service = start_service(engine=make_scripted(), tracing=Tracing(provider.get_tracer("folio")))
    service.ingest("bridge.txt", b"The bridge at Hampton was built by Ada Miller in 1862.\n")
    return service, exporter


def test_a_question_is_a_span_and_its_stages_lie_below(told: tuple[Any, Any]) -> None:
    service, exporter = told
    exporter.clear()
    asked = {"question": "Who built the bridge?", "mode": "retrieval"}
    assert service.client.post("/v1/answer", json=asked, headers={"traceparent": PARENT}).status_code == 200
    *stages, question = exporter.get_finished_spans()
    assert [span.name for span in stages] == STAGES
    assert question.name == "question"
    assert f"{question.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{question.parent.span_id:016x}" == PARENT.split("-")[2]
    assert question.attributes["folio.mode"] == "retrieval"
    assert question.attributes["folio.prompt_tokens"] > 0
    for before, after in pairwise(stages):
        assert question.start_time <= before.start_time <= before.end_time <= after.end_time <= question.end_time
    assert all(span.parent.span_id == question.context.span_id for span in stages)
    text = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert "bridge" not in text
    assert "Miller" not in text


def test_openais_route_is_traced_and_a_refusal_is_an_error(told: tuple[Any, Any]) -> None:
    service, exporter = told
    exporter.clear()
    messages = [{"role": "user", "content": "Who built the bridge?"}]
    body = {"model": service.runtime.model_name, "messages": messages, "folio": {"documents": ["nosuch"]}}
    assert service.client.post("/v1/chat/completions", json=body).status_code == 404
    _, question = exporter.get_finished_spans()
    assert (question.status.status_code.name, question.status.description) == ("ERROR", "NotFound")
    exporter.clear()
    assert service.client.post("/v1/chat/completions", json={**body, "folio": {"mode": "retrieval"}}).status_code == 200
    assert [span.name for span in exporter.get_finished_spans()] == [*STAGES, "question"]


def test_an_endpoint_without_the_sdk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from service.api.tracing import make_tracing

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InvalidRequest) as refused:
        make_tracing(load_settings(otlp_endpoint="http://127.0.0.1:4318/v1/traces"))
    assert "folio-serve[otel]" in refused.value.detail
    assert make_tracing(load_settings()) is None
