"""`/docs`: the interface, rendered here from its OpenAPI description. No script, nothing from another host."""

from __future__ import annotations

import json
from collections.abc import Collection
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, Response

router = APIRouter(include_in_schema=False)

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2rem; text-transform: capitalize }
summary { cursor: pointer; padding: .3rem 0 }
code, pre { font-family: ui-monospace, monospace; font-size: .9em }
pre { overflow-x: auto; padding: .8rem; border: 1px solid color-mix(in srgb, currentColor 25%, transparent) }
table { border-collapse: collapse } td, th { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top }
.method { display: inline-block; min-width: 4.5rem; font-weight: 600 }
"""


@router.get("/docs")
def page(request: Request) -> HTMLResponse:
    """Every route with its parameters, body and responses."""
    api = request.app.openapi()
    groups: dict[str, list[str]] = {}
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["other"])[0]
            groups.setdefault(tag, []).append(_operation(api, path, method, operation))
    sections = "".join(f"<h2>{escape(tag)}</h2>{''.join(items)}" for tag, items in groups.items())
    title = f"{api['info']['title']} {api['info']['version']}"
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="docs.css"></head><body>'
        f"<h1>{escape(title)}</h1><p>{escape(api['info']['description'])} "
        f'The same as <a href="openapi.json">OpenAPI</a>.</p>{sections}</body></html>'
    )


@router.get("/docs.css")
def style() -> Response:
    """The style of the page: the content policy allows none inside it."""
    return Response(STYLE, media_type="text/css")


def describe_keys(app: FastAPI, open_paths: Collection[str]) -> None:
    """Say in the description which routes need a key; all of them work without where the service has none."""
    original = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            api = original()
            api["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, methods in api["paths"].items():
                for operation in methods.values() if path not in open_paths else ():
                    operation["security"] = [{"key": []}, {}]
        return app.openapi_schema or {}

    app.openapi = described  # type: ignore[method-assign]


def _operation(api: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>"]
    if operation.get("parameters"):
        rows = "".join(
            f"<tr><td><code>{escape(p['name'])}</code></td><td>{p['in']}</td>"
            f"<td>{escape(_kind(p.get('schema', {})))}</td></tr>"
            for p in operation["parameters"]
        )
        parts.append(f"<table><tr><th>parameter<th>in<th>kind</tr>{rows}</table>")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body, {escape(kind)}:</p>{_schema(api, content.get('schema', {}))}")
    for status, response in operation.get("responses", {}).items():
        for kind, content in response.get("content", {}).items():
            if status.startswith("2") and content.get("schema"):
                parts.append(f"<p>{status}, {escape(kind)}:</p>{_schema(api, content['schema'])}")
    head = f'<span class="method">{method.upper()}</span><code>{escape(path)}</code>'
    return f"<details><summary>{head} {escape(operation.get('summary', ''))}</summary>{''.join(parts)}</details>"


def _schema(api: dict[str, Any], schema: dict[str, Any]) -> str:
    """A schema's properties, one level deep."""
    name = schema.get("$ref", "").rpartition("/")[2]
    schema = api["components"]["schemas"][name] if name else schema
    properties = schema.get("properties")
    if not properties:
        return f"<pre>{escape(json.dumps(schema, indent=1, ensure_ascii=False)[:2000])}</pre>"
    rows = "".join(
        f"<tr><td><code>{escape(key)}</code>{' *' if key in schema.get('required', []) else ''}</td>"
        f"<td>{escape(_kind(value))}</td><td>{escape(str(value.get('description', '')))}</td></tr>"
        for key, value in properties.items()
    )
    return f"<table>{rows}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    kind = str(schema.get("type", schema.get("const", "any")))
    return f"list of {_kind(schema['items'])}" if kind == "array" and "items" in schema else kind
