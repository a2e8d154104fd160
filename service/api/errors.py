"""Errors over HTTP: problem+json (RFC 9457) on Folio's own routes, OpenAI's error object on theirs.

What nobody foresaw is a 500 that names the log entry and nothing else: an exception's text may hold a path, a
query or somebody's document.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.api.faults import faults
from service.api.waiting import ClientLeft
from service.errors import Busy, FolioError, MethodNotAllowed, NotFound, StoreUnavailable, Unavailable, outward

log = structlog.get_logger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that left: nobody reads it, but the metrics count it apart from errors of ours."""
PROBLEM_TYPE = "application/problem+json"
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
"""Anthropic's, and whose errors are Anthropic's too."""
OWN_ROUTES = (
    "/v1/answer",
    "/v1/collections",
    "/v1/conversations",
    "/v1/documents",
    "/v1/jobs",
    "/v1/receipts",
    "/v1/search",
    "/v1/tables",
    "/v1/watches",
)
"""Folio's own below /v1, where all else is spoken to as OpenAI's service is."""
IN_MESSAGES = ("prompt", "question", "history")
"""What is at fault when a conversation is, by the names that the parts within have for it."""
CONVERSATIONS = {CHAT: "messages", RESPONSES: "input"}
"""The field in which it came, by route."""
ALSO_OPENAI = ("/tokenize", "/detokenize", "/rerank", "/score", "/v2/rerank")
"""Routes outside /v1 that speak as those inside, as vLLM's do."""
EVERY_STATUS = (400, 401, 403, 413, 429, 500, 503)
"""What any route may answer."""
METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
"""Those of routes; HEAD is answered wherever GET is."""

OPENAI_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ANTHROPIC_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""By status; of the others, those below 500 are invalid requests."""

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
        "error": OPENAI_SCHEMA["properties"]["error"],
    },
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: these statuses, as problem+json, besides those that every route may give."""
    return _responses({*EVERY_STATUS, 422, *statuses}, PROBLEM_TYPE, PROBLEM_SCHEMA)


def openai_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for OpenAI's routes, with their error object."""
    return _responses({*EVERY_STATUS, *statuses}, "application/json", OPENAI_SCHEMA)


def anthropic_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for Anthropic's."""
    return _responses({*EVERY_STATUS, *statuses}, "application/json", ANTHROPIC_SCHEMA)


def _responses(statuses: Collection[int], kind: str, schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {kind: {"schema": schema}}}
        for status in sorted(statuses)
    }


def is_openai(path: str) -> bool:
    """Whether a route, or one that is not there, answers as OpenAI's service does."""
    below = path.startswith("/v1/") or path in ("/v1", *ALSO_OPENAI)
    return below and not any(path == own or path.startswith(f"{own}/") for own in OWN_ROUTES)


def openai_problem(path: str, error: FolioError) -> dict[str, Any]:
    """OpenAI's error object."""
    param = CONVERSATIONS.get(path, error.param) if error.param in IN_MESSAGES else error.param
    code = error.openai_code or error.problem.replace("-", "_")
    return _openai_error(error.detail, error.openai_type, param, code)


def is_anthropic(path: str) -> bool:
    """Whether a route answers as Anthropic's service does."""
    return path == MESSAGES or path.startswith(f"{MESSAGES}/")


def anthropic_problem(error: FolioError) -> dict[str, Any]:
    """Anthropic's error object."""
    return _anthropic_error(error.detail, error.status)


def _anthropic_error(message: str, status: int) -> dict[str, Any]:
    kind = ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def _openai_error(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response_for(path: str, error: FolioError) -> JSONResponse:
    """The response that says `error` in the manner of the route."""
    headers: dict[str, str] = {}
    if isinstance(error, Busy | Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _said(path, error.as_problem(), openai_problem(path, error), error.status, headers)


def _said(
    path: str, problem: dict[str, Any], theirs: dict[str, Any], status: int, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The error object where it is a route of OpenAI's or Anthropic's; else a problem, which below /v1 holds it too."""
    if is_anthropic(path):
        return JSONResponse(_anthropic_error(theirs["error"]["message"], status), status, headers)
    if is_openai(path):
        return JSONResponse(theirs, status, headers)
    body = problem | theirs if path.startswith("/v1/") else problem
    return JSONResponse(body, status, headers, media_type=PROBLEM_TYPE)


def response_to(path: str, error: Exception) -> JSONResponse:
    """The response to any exception; what nobody foresaw is a 500 without its text, which goes to the log."""
    known = outward(error)
    if isinstance(known, StoreUnavailable):
        log.warning("the store cannot be used", path=path, cause=str(error))
    return response_for(path, known) if known else _unforeseen(path, error)


def _unforeseen(path: str, error: Exception) -> JSONResponse:
    incident = secrets.token_hex(4)
    log.error("unforeseen error", incident=incident, path=path, exc_info=error)
    return response_for(path, FolioError(f"Something went wrong here; the log has it as {incident}."))


def install(app: FastAPI) -> None:
    """Register the handlers."""

    @app.exception_handler(ClientLeft)
    async def _left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(FolioError)
    async def _folio(request: Request, error: FolioError) -> JSONResponse:
        return response_to(request.url.path, error)

    @app.exception_handler(ValueError)
    async def _value(request: Request, error: ValueError) -> JSONResponse:
        return response_to(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return _invalid(request.url.path, list(error.errors()), error.body)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path
        if error.status_code == 405:
            allowed = ", ".join(allowed_methods(app, path))
            refused = response_for(path, MethodNotAllowed(f"{path[:100]} takes {allowed}, not {request.method[:20]}."))
            refused.headers["Allow"] = allowed
            return refused
        if error.status_code == 404:
            return response_for(path, NotFound(f"There is nothing at {path[:100]!r}.", hint="See /docs."))
        return _plain(path, error)


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """What a path takes, of all routes."""
    asked = [{"type": "http", "path": path, "root_path": "", "headers": [], "method": method} for method in METHODS]
    taken = {str(one["method"]) for one in asked if any(route.matches(one)[0] is Match.FULL for route in app.routes)}
    return sorted(taken | ({"HEAD"} if "GET" in taken else set()))


def _invalid(path: str, found: list[dict[str, Any]], body: Any) -> JSONResponse:
    """A body, query or header that does not fit the schema: every fault with its place."""
    kept = faults(found, body)
    first = kept[0]
    detail = first.sentence
    status = 400 if found[0]["type"] in ("json_invalid", "folio_encoding") else 422
    problem = {
        "type": "urn:folio:problem:invalid-request",
        "title": "Invalid request",
        "status": status,
        "detail": detail,
        "errors": [{"param": fault.param, "reason": fault.reason} for fault in kept[:20]],
    }
    theirs = _openai_error(detail, "invalid_request_error", first.param or None, "invalid_value")
    return _said(path, problem, theirs, 400 if is_openai(path) else status)


def _plain(path: str, error: HTTPException) -> JSONResponse:
    """What the framework itself refuses: malformed multipart, a file that cannot be read."""
    title = HTTPStatus(error.status_code).phrase
    slug = title.lower().replace(" ", "-")
    problem = {
        "type": f"urn:folio:problem:{slug}",
        "title": title,
        "status": error.status_code,
        "detail": str(error.detail),
    }
    theirs = _openai_error(str(error.detail), "invalid_request_error", None, slug.replace("-", "_"))
    return _said(path, problem, theirs, error.status_code, error.headers)
