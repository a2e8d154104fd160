"""OpenTelemetry traces of questions, for whoever sets FOLIO_OTLP_ENDPOINT and has the extra ``otel``.

A question is a span, in the trace that its request names (``traceparent``), and each of its stages one below it: find
evidence, read prompt, write answer, check citations. They are read off the events of the answer: answering knows
nothing of them. Spans hold counts, times and modes, and never a word of a question, an answer or a document.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import Request

from service.answering.answer import Event
from service.errors import InvalidRequest
from service.settings import Settings


def traced(request: Request, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The same events, under a span where spans are wanted."""
    tracing: Tracing | None = request.app.state.tracing
    return events if tracing is None else tracing.question(events, request.headers)


def make_tracing(settings: Settings) -> Tracing | None:
    """Sends spans to the endpoint of the settings; None where there is none. Raises InvalidRequest without the SDK."""
    if not settings.otlp_endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidRequest(
            "Traces need OpenTelemetry's SDK, which is not installed.",
            hint="`pip install folio-serve[otel]`, or unset FOLIO_OTLP_ENDPOINT.",
            param="otlp_endpoint",
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "folio"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.otlp_endpoint)))
    return Tracing(provider.get_tracer("folio"))


class Tracing:
    """Writes spans with a tracer of OpenTelemetry."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    async def question(
        self, events: AsyncGenerator[Event, None], headers: Mapping[str, str]
    ) -> AsyncGenerator[Event, None]:
        """The events of one answer, which is a span from here to their end."""
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        span = self._tracer.start_span("question", propagate.extract(headers), SpanKind.SERVER)
        below = set_span_in_context(span)
        stage = self._tracer.start_span("find evidence", below)
        found = written = False
        last = time.time_ns()
        try:
            async with aclosing(events):
                async for event in events:
                    if event.type == "search_results" and not found:
                        found = True
                        stage.end()
                        span.set_attributes(
                            {"folio.mode": event.data["mode"], "folio.results": len(event.data["results"])}
                        )
                        stage = self._tracer.start_span("read prompt", below)
                    elif event.type == "message":
                        last = time.time_ns()
                        if not written:
                            written = True
                            stage.end(last)
                            stage = self._tracer.start_span("write answer", below, start_time=last)
                    elif event.type == "stats":
                        stage.end(last)
                        stage = self._tracer.start_span("check citations", below, start_time=last)
                        span.set_attributes(_counts(event.data))
                    elif event.type == "done":
                        span.set_attributes(_outcome(event.data))
                    elif event.type == "error":
                        span.set_status(Status(StatusCode.ERROR, str(event.data.get("title", ""))))
                    yield event
        except Exception as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            stage.end()
            span.end()


def _counts(stats: Mapping[str, Any]) -> dict[str, Any]:
    names = ("prompt_tokens", "output_tokens", "cached_tokens", "ttft_s")
    return {f"folio.{name}": stats[name] for name in names if stats.get(name) is not None}


def _outcome(done: Mapping[str, Any]) -> dict[str, Any]:
    names = ("verified", "refused", "finish_reason")
    return {f"folio.{name}": done[name] for name in names if done.get(name) is not None}
