"""Keys, scopes, owners, rates; nothing open that is not named open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.accounts.keys import KeyStore


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture(scope="module")
def tenants(start_service: Callable[..., Any]) -> Any:
    """A service with keys for two owners, a read-only one and a revoked one."""
    service = start_service()
    keys: KeyStore = service.runtime.keys
    service.keys = keys
    service.ada = keys.create("ada", "laptop")[1]
    service.bob = keys.create("bob", "laptop")[1]
    service.reader = keys.create("ada", "reader", ["read"])[1]
    revoked, service.revoked = keys.create("ada", "old")
    keys.revoke(revoked.id)
    service.document = service.ingest("ada.txt", b"Ada keeps a secret garden.", **bearer(service.ada))["id"]
    return service


ROUTES = [
    ("GET", "/v1/documents"),
    ("GET", "/v1/documents/x"),
    ("GET", "/v1/documents/x/text"),
    ("GET", "/v1/documents/x/boxes?start=0&end=1"),
    ("GET", "/v1/documents/x/pages/1/image"),
    ("DELETE", "/v1/documents/x"),
    ("POST", "/v1/documents"),
    ("GET", "/v1/jobs/x"),
    ("POST", "/v1/jobs/x/cancel"),
    ("POST", "/v1/search"),
    ("POST", "/v1/answer"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/metrics"),
    ("GET", "/v1/canary"),
    ("DELETE", "/v1/canary"),
    ("GET", "/no/such/route"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_needs_a_key(tenants: Any, method: str, path: str) -> None:
    for headers in ({}, bearer("folio_wrong"), {"Authorization": "Basic eDp5"}, bearer(tenants.revoked)):
        answer = tenants.client.request(method, path, headers=headers)
        assert answer.status_code == 401, (path, headers)
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/docs.css", "/openapi.json"])
def test_what_is_open(tenants: Any, path: str) -> None:
    assert tenants.client.get(path).status_code == 200


def test_another_owners_things_do_not_exist(tenants: Any) -> None:
    bob, document = bearer(tenants.bob), tenants.document
    client: httpx.Client = tenants.client
    pages = ("/text", "/boxes?start=0&end=1", "/pages/1/image")
    for method, path in (("GET", ""), *(("GET", page) for page in pages), ("DELETE", "")):
        assert client.request(method, f"/v1/documents/{document}{path}", headers=bob).status_code == 404
    assert client.get("/v1/documents", headers=bob).json()["documents"] == []
    assert client.post("/v1/search", json={"query": "secret garden"}, headers=bob).json()["results"] == []
    scoped = {"query": "secret garden", "documents": [document]}
    assert client.post("/v1/search", json=scoped, headers=bob).status_code == 404
    asked = {"question": "What does Ada keep?", "documents": [document]}
    assert client.post("/v1/answer", json=asked, headers=bob).status_code == 404
    assert "garden" not in client.post("/v1/answer", json={"question": "What?", "max_tokens": 4}, headers=bob).text
    assert client.get(f"/v1/documents/{document}", headers=bearer(tenants.ada)).status_code == 200


def test_another_owners_job_does_not_exist(tenants: Any) -> None:
    upload = {"files": {"file": ("a.txt", b"Mine.")}, "headers": bearer(tenants.ada)}
    job = tenants.client.post("/v1/documents", **upload).json()["id"]
    assert tenants.client.get(f"/v1/jobs/{job}", headers=bearer(tenants.bob)).status_code == 404
    assert tenants.client.post(f"/v1/jobs/{job}/cancel", headers=bearer(tenants.bob)).status_code == 404


def test_scopes(tenants: Any) -> None:
    reader = bearer(tenants.reader)
    assert tenants.client.get("/v1/documents", headers=reader).status_code == 200
    upload = tenants.client.post("/v1/documents", files={"file": ("x.txt", b"x")}, headers=reader)
    assert upload.status_code == 403
    assert tenants.client.delete(f"/v1/documents/{tenants.document}", headers=reader).status_code == 403


def test_secrets_are_not_stored_and_actions_are_audited(tenants: Any) -> None:
    stored = repr(tenants.keys.all()) + repr(tenants.keys.audit_log())
    assert tenants.ada not in stored
    actions = {entry["action"] for entry in tenants.keys.audit_log()}
    assert {"key.create", "key.revoke", "document.upload"} <= actions
    database = (tenants.runtime.settings.home / "folio.db").read_bytes()
    assert tenants.ada.encode() not in database


def test_rates_and_concurrency(start_service: Callable[..., Any]) -> None:
    service = start_service()
    secret = service.runtime.keys.create("ada", limits={"rate_per_minute": 3})[1]
    codes = [service.client.get("/v1/documents", headers=bearer(secret)).status_code for _ in range(5)]
    assert codes == [200, 200, 200, 429, 429]
    refused = service.client.get("/v1/documents", headers=bearer(secret))
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert service.client.get("/v1/documents", headers=bearer(secret)).json()["status"] == 429
    single = service.runtime.keys.create("bob", limits={"concurrency": 1})[1]
    body = {
        "model": service.runtime.model_name,
        "prompt": "x",
        "max_tokens": 4000,
        "stream": True,
        "ignore_eos": True,
    }
    with service.client.stream("POST", "/v1/completions", json=body, headers=bearer(single)) as response:
        assert response.status_code == 200, response.read()
        lines = response.iter_lines()
        next(lines)
        assert service.client.get("/v1/documents", headers=bearer(single)).status_code == 429
    assert service.idle()
    assert service.client.get("/v1/documents", headers=bearer(single)).status_code == 200


def test_storage(start_service: Callable[..., Any]) -> None:
    service = start_service()
    secret = service.runtime.keys.create("ada", limits={"storage_bytes": 100})[1]
    service.ingest("one.txt", b"a" * 60, **bearer(secret))
    more = service.client.post("/v1/documents", files={"file": ("t.txt", b"b" * 60)}, headers=bearer(secret))
    assert more.status_code == 413


def test_revoking_the_last_key_opens_nothing(start_service: Callable[..., Any]) -> None:
    service = start_service()
    assert service.client.get("/v1/documents").status_code == 200
    key, secret = service.runtime.keys.create("ada")
    assert service.client.get("/v1/documents").status_code == 401
    service.runtime.keys.revoke(key.id)
    assert service.client.get("/v1/documents", headers=bearer(secret)).status_code == 401
    assert service.client.get("/v1/documents").status_code == 401


def test_one_key_from_the_settings(start_service: Callable[..., Any]) -> None:
    service = start_service(api_key="from-settings")
    assert service.client.get("/v1/documents").status_code == 401
    assert service.client.get("/v1/documents", headers=bearer("from-settings")).status_code == 200
    openai_error = service.client.get("/v1/models", headers=bearer("x")).json()["error"]
    assert openai_error["type"] == "authentication_error"


def test_browser_rules(service: Any) -> None:
    page = service.client.get("/docs")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "http" not in page.text.replace("http-equiv", "")
    foreign = service.client.get("/v1/documents", headers={"Host": "evil.example"})
    assert foreign.status_code == 403
    other_site = service.client.post("/v1/search", json={"query": "x"}, headers={"Origin": "https://evil.example"})
    assert other_site.status_code == 403
    own = service.client.post("/v1/search", json={"query": "x"}, headers={"Origin": service.url})
    assert own.status_code == 200
