"""Whatever a front end asks of the engine, it asks in the caller's name; `test_learned_state` shows why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from retrieval.types import DEFAULT_OWNER
from service.api.auth import AuthMiddleware
from service.engine.async_engine import AsyncEngine
from service.engine.params import SamplingParams

from ..service.api.conftest import make_engine, start_service  # noqa: F401
from ..service.conftest import tiny_model  # noqa: F401

MESSAGES = [{"role": "user", "content": "Who built the bridge?"}]
ASKED: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [{"prompt": ["Ada", "Bridges"], "n": 2}],
    "/v1/chat/completions": [
        {"messages": MESSAGES},
        {"messages": MESSAGES, "folio": {"mode": "long"}},
        {"messages": MESSAGES, "folio": {"mode": "retrieval"}, "stream": True},
    ],
    "/v1/answer": [
        {"question": "Who built the bridge?", "mode": mode, "history": history}
        for mode in ("auto", "long", "retrieval", "iterative")
        for history in ([], [*MESSAGES, {"role": "assistant", "content": "Ada Miller did."}])
    ],
}


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Any]) -> Any:  # noqa: F811
    found = start_service(follow_ups="model")
    found.bob = {"Authorization": f"Bearer {found.runtime.keys.create('bob')[1]}"}
    found.ingest("bridge.txt", b"The bridge was built by Ada Miller in 1862. It has seven arches.", **found.bob)
    return found


def test_whatever_is_made_while_a_request_is_served_is_the_callers(service: Any) -> None:
    """In the handler itself, in tasks, in threads and in streams: of routes that are yet to be written, too."""
    seen: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        async def stream() -> AsyncIterator[str]:
            yield SamplingParams().owner

        seen.append(SamplingParams().owner)
        seen.append(await asyncio.create_task(asyncio.to_thread(lambda: SamplingParams().owner)))
        seen.extend([owner async for owner in stream()])

    door = AuthMiddleware(inner, lambda: service.runtime.keys, ())
    header = service.bob["Authorization"].encode()
    scope = {"type": "http", "path": "/new", "headers": [(b"authorization", header)]}
    asyncio.run(door(scope, None, None))  # type: ignore[arg-type]
    assert seen == ["bob"] * 3
    assert SamplingParams().owner == DEFAULT_OWNER


@pytest.mark.parametrize(("path", "body"), [(path, body) for path, bodies in ASKED.items() for body in bodies])
def test_the_engine_is_asked_in_the_callers_name(
    service: Any, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: list[str] = []
    submit = AsyncEngine._submit

    def noted(self: AsyncEngine, taker: Any, prompt_ids: Any, params: Any, *rest: Any, **named: Any) -> str:
        owners.append(params.owner)
        return submit(self, taker, prompt_ids, params, *rest, **named)

    monkeypatch.setattr(AsyncEngine, "_submit", noted)
    named = {"model": service.runtime.model_name} if path != "/v1/answer" else {}
    answer = service.client.post(path, json={**named, "max_tokens": 8, **body}, headers=service.bob)
    assert answer.status_code == 200, answer.text
    assert set(owners) == {"bob"}


def test_the_figures_of_all_owners_need_a_scope_of_their_own(service: Any) -> None:
    operator = {"Authorization": f"Bearer {service.runtime.keys.create('ops', scopes=['metrics'])[1]}"}
    assert service.client.get("/metrics", headers=service.bob).status_code == 403
    assert service.client.get("/metrics", headers=operator).status_code == 200
    assert service.client.get("/v1/documents", headers=operator).status_code == 403
