"""Errors over HTTP: problem+json (RFC 9457) on Folio's own routes, OpenAI's error object on theirs.

What nobody foresaw is a 500 that names the log entry and nothing else: an exception's text may hold a path, a
query or somebody's document.
"""

from __future__ import annotations

import math
import secrets
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service.api.waiting import ClientLeft
from service.errors import Busy, FolioError, Unavailable, translate
from service.fields import reason, sentence

log = structlog.get_logger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that left: nobody reads it, but the metrics count it apart from errors of ours."""
PROBLEM_TYPE = "application/problem+json"
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
OPENAI_ROUTES = (CHAT, "/v1/completions", "/v1/models", "/v1/embeddings", RESPONSES)
IN_MESSAGES = ("prompt", "question", "history")
"""What is at fault when a conversation is, by the names that the parts within have for it."""
CONVERSATIONS = {CHAT: "messages", RESPONSES: "input"}
"""The field in which it came, by route."""

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "param": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: these statuses, as problem+json, besides those that every route may give."""
    every = {400, 401, 403, 413, 422, 429, 500, 503, *statuses}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM_TYPE: {"schema": PROBLEM_SCHEMA}},
        }
        for status in sorted(every)
    }


def openai_problem(path: str, error: FolioError) -> dict[str, Any]:
    """OpenAI's error object."""
    param = CONVERSATIONS.get(path, error.param) if error.param in IN_MESSAGES else error.param
    return _openai_error(error.detail, error.openai_type, param, error.problem.replace("-", "_"))


def _openai_error(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response_for(path: str, error: FolioError) -> JSONResponse:
    """The response that says `error` in the manner of the route."""
    headers: dict[str, str] = {}
    if isinstance(error, Busy | Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if path.startswith(OPENAI_ROUTES):
        return JSONResponse(openai_problem(path, error), error.status, headers)
    return JSONResponse(error.as_problem(), error.status, headers, media_type=PROBLEM_TYPE)


def unforeseen(path: str, error: BaseException) -> JSONResponse:
    """A 500 without the exception's text, which goes to the log under an id."""
    incident = secrets.token_hex(4)
    log.error("unforeseen error", incident=incident, path=path, exc_info=error)
    return response_for(path, FolioError(f"Something went wrong here; the log has it as {incident}."))


def install(app: FastAPI) -> None:
    """Register the handlers."""

    @app.exception_handler(Exception)
    async def _any(request: Request, error: Exception) -> JSONResponse:
        known = translate(error)
        return response_for(request.url.path, known) if known else unforeseen(request.url.path, error)

    @app.exception_handler(ClientLeft)
    async def _left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(FolioError)
    async def _folio(request: Request, error: FolioError) -> JSONResponse:
        return response_for(request.url.path, error)

    @app.exception_handler(ValueError)
    async def _value(request: Request, error: ValueError) -> JSONResponse:
        return await _any(request, error)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return _invalid(request.url.path, list(error.errors()))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return _plain(request.url.path, error)


def _invalid(path: str, found: list[dict[str, Any]]) -> JSONResponse:
    """A body, query or header that does not fit the schema: every fault with its place."""
    faults = [{"param": _place(fault["loc"]), "reason": reason(fault)} for fault in found]
    first = faults[0]
    detail = sentence(first["param"] or "The body", found[0])
    if path.startswith(OPENAI_ROUTES):
        return JSONResponse(
            _openai_error(detail, "invalid_request_error", first["param"] or None, "invalid_value"), 400
        )
    status = 400 if found[0]["type"] in ("json_invalid", "folio_encoding") else 422
    body = {
        "type": "urn:folio:problem:invalid-request",
        "title": "Invalid request",
        "status": status,
        "detail": detail,
        "errors": faults[:20],
    }
    return JSONResponse(body, status, media_type=PROBLEM_TYPE)


def _plain(path: str, error: HTTPException) -> JSONResponse:
    """What the framework itself refuses: no such route, wrong method, malformed multipart."""
    title = HTTPStatus(error.status_code).phrase
    detail = str(error.detail)
    if path.startswith(OPENAI_ROUTES):
        body = _openai_error(detail, "invalid_request_error", None, None)
        return JSONResponse(body, error.status_code, error.headers)
    slug = title.lower().replace(" ", "-")
    body = {
        "type": f"urn:folio:problem:{slug}",
        "title": title,
        "status": error.status_code,
        "detail": detail,
    }
    return JSONResponse(body, error.status_code, error.headers, media_type=PROBLEM_TYPE)


def _place(location: Any) -> str:
    parts = [str(part) for part in location]
    if parts and parts[0] in ("body", "query", "path", "header"):
        parts = parts[1:]
    return ".".join(parts)
