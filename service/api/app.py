"""The FastAPI application: routers, middleware, and the life of the runtime behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.staticfiles import StaticFiles
from starlette.routing import Route

from service.accounts.idempotency import Idempotency
from service.accounts.responses import ResponseStore
from service.api import (
    answer,
    canary,
    conversations,
    docs,
    documents,
    errors,
    health,
    jobs,
    metrics,
    overview,
    receipts,
    search,
    tables,
    watches,
)
from service.api.anthropic import messages
from service.api.auth import OPEN, AuthMiddleware
from service.api.limits import BodyLimitMiddleware
from service.api.manners import IGNORED, REQUEST_ID, MannersMiddleware
from service.api.openai import chat, completions, embeddings, models, responses, scoring, tokens
from service.api.security import SecurityMiddleware
from service.api.tracing import make_tracing
from service.runtime import Runtime
from service.settings import Settings

UI_FOLDER = Path(__file__).parents[1] / "ui"

DESCRIPTION = (
    "Answers questions over long documents, by reading them whole or by retrieval, with citations checked "
    "against the stored text. Errors are problem+json (RFC 9457); the OpenAI routes use OpenAI's error object, which "
    "a problem below /v1 holds too. Send the key, where the service has keys, as 'Authorization: Bearer KEY'."
)


def create_app(settings: Settings, runtime: Runtime | None = None) -> FastAPI:
    """The application for these settings. A `runtime` that is given must have been started by the caller."""
    own = runtime is None
    parts = runtime or Runtime(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if own:
            await parts.start(serving=True)
        try:
            yield
        finally:
            if own:
                await parts.stop()

    app = FastAPI(
        title="Folio",
        version=version("folio-serve"),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    figures = metrics.Metrics(parts)
    app.state.runtime = parts
    app.state.metrics = figures
    app.state.tracing = make_tracing(settings)
    app.state.idempotency = Idempotency(lambda: parts.library.database)
    app.state.responses = ResponseStore(lambda: parts.library.database, settings.response_days)
    parts.observers.append(figures.observe)
    for module in (
        health,
        metrics,
        canary,
        documents,
        overview,
        jobs,
        search,
        answer,
        receipts,
        tables,
        watches,
        conversations,
        docs,
        chat,
        completions,
        responses,
        messages,
        models,
        embeddings,
        scoring,
        tokens,
    ):
        app.include_router(module.router)
    if find_spec("mcp") is not None:  # the extra
        from service.mcp.server import Endpoint

        app.router.routes.append(Route("/mcp", Endpoint(parts), include_in_schema=False))
    docs.describe_keys(app, OPEN)
    errors.install(app)
    pages = _ui_paths()
    if pages:  # a route for each, and no mount, which would take whatever no route does
        files = StaticFiles(directory=UI_FOLDER, html=True)
        app.router.routes += [Route(path, files, methods=["GET"]) for path in ["/", *pages]]
    app.add_middleware(BodyLimitMiddleware, settings=settings)
    app.add_middleware(AuthMiddleware, keys=lambda: parts.keys, open_paths=pages)
    app.add_middleware(SecurityMiddleware, settings=settings)
    app.add_middleware(metrics.MetricsMiddleware, metrics=figures)
    app.add_middleware(MannersMiddleware)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID, IGNORED, "Retry-After", "Location"],
        )
    return app


def _ui_paths() -> list[str]:
    """Paths of the page's files, which need no key."""
    return [f"/{file.relative_to(UI_FOLDER).as_posix()}" for file in UI_FOLDER.rglob("*") if file.is_file()]
