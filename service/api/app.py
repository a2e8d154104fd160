"""The FastAPI application: routers, middleware, and the life of the runtime behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from service.accounts.idempotency import Idempotency
from service.accounts.responses import ResponseStore
from service.api import answer, docs, documents, errors, health, jobs, metrics, search
from service.api.auth import AuthMiddleware
from service.api.limits import BodyLimitMiddleware
from service.api.openai import chat, completions, embeddings, models, responses
from service.api.security import SecurityMiddleware
from service.runtime import Runtime
from service.settings import Settings

UI_FOLDER = Path(__file__).parents[1] / "ui"

DESCRIPTION = (
    "Answers questions over long documents, by reading them whole or by retrieval, with citations checked "
    "against the stored text. Errors are problem+json (RFC 9457); the OpenAI routes use OpenAI's error object."
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
    app.state.idempotency = Idempotency(lambda: parts.library.database)
    app.state.responses = ResponseStore(lambda: parts.library.database, settings.response_days)
    parts.observers.append(figures.observe)
    for module in (
        health,
        metrics,
        documents,
        jobs,
        search,
        answer,
        docs,
        chat,
        completions,
        responses,
        models,
        embeddings,
    ):
        app.include_router(module.router)
    errors.install(app)
    pages = _ui_paths()
    if pages:
        app.mount("/", StaticFiles(directory=UI_FOLDER, html=True), name="ui")
    app.add_middleware(BodyLimitMiddleware, settings=settings)
    app.add_middleware(AuthMiddleware, keys=lambda: parts.keys, open_paths=pages)
    app.add_middleware(SecurityMiddleware, settings=settings)
    app.add_middleware(metrics.MetricsMiddleware, metrics=figures)
    return app


def _ui_paths() -> list[str]:
    """Paths of the page's files, which need no key."""
    return [f"/{file.relative_to(UI_FOLDER).as_posix()}" for file in UI_FOLDER.rglob("*") if file.is_file()]
