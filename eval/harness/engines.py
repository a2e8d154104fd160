"""What answers: points of the service's own configuration in this process, or any OpenAI endpoint.

A point is written ``PART[+PART…]``: attention policies as `sparse_attn.plan.policies` names them (``dense``,
``lserve:budget=2048``, ``xattention+quest``), a drafter of `drafters.registry` (``fusion``; ``rapid`` is its
``rag``), and ``retrieval``, which gives the model the passages found for the question in place of the whole
context. A name that both have (``auto``) is the policy where it comes first. Without a policy attention is
dense, without a drafter there is none. ``openai:URL[:MODEL]`` is an endpoint.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from drafters.registry import DRAFTERS
from eval.errors import EvalError
from eval.harness.prompting import ModelInput
from service.engine.async_engine import AsyncEngine
from service.engine.options import parse_drafter, parse_policy
from service.engine.params import DraftSources, SamplingParams
from service.errors import InvalidRequest
from sparse_attn.errors import SparseAttentionError
from sparse_attn.plan.policies import POLICIES

RETRIEVAL = "retrieval"
ALIASES = {"rapid": "rag"}
OPENAI = "openai:"
EVERYBODY = "everybody"
"""The owner of prefixes that all points find."""
_ENDPOINT = re.compile(r"(https?://[^/:]+(?::\d+)?(?:/[^:]*)?)(?::(.+))?")


@dataclass(frozen=True)
class Reply:
    """An engine's answer to one prompt.

    Attributes:
        token_ids: the generated ids; () where an endpoint does not tell.
        ttft_s: seconds from the request to the first token.
        total_s: seconds from the request to the end.
        decode_tokens_per_s: rate of the tokens after the first; None for fewer than two.
        stats: further figures of the engine (drafted and accepted tokens, for one).
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str
    prompt_tokens: int
    ttft_s: float
    total_s: float
    decode_tokens_per_s: float | None
    stats: dict[str, Any] = field(default_factory=dict)


class AnswerEngine(Protocol):
    """Answers one prompt at a time, greedily."""

    name: str
    window: int

    def describe(self) -> dict[str, Any]:
        """What the results must say about it."""
        ...

    def answer(self, prompt: ModelInput, new_tokens: int) -> Reply:
        """Generate at most `new_tokens` tokens.

        Raises:
            FolioError: this prompt cannot be answered; the next one may.
        """
        ...


@dataclass(frozen=True)
class Point:
    """A point of the service's configuration, as parsed from its name.

    Attributes:
        same_tokens: the drafter, by its own declaration, leaves the tokens those of plain decoding.
    """

    name: str
    attention: str
    drafter: str
    retrieval: bool
    same_tokens: bool

    @classmethod
    def parse(cls, name: str) -> Point:
        """Read a point's name.

        Raises:
            EvalError: a part is neither a policy nor a drafter, or has a wrong option.
        """
        policies: list[str] = []
        drafter, retrieval = "none", False
        for part in name.split("+"):
            base, colon, options = part.partition(":")
            base = ALIASES.get(base, base)
            if base == RETRIEVAL:
                retrieval = True
            elif base in POLICIES and (base not in DRAFTERS or not policies):
                policies.append(part)
            elif base in DRAFTERS and drafter == "none":
                drafter = base + colon + options
            else:
                known = ", ".join([*POLICIES, *DRAFTERS, *ALIASES, RETRIEVAL])
                raise EvalError(
                    f"the engine {name!r} has an unknown or repeated part {part!r}",
                    hint=f"Parts are {known}; or write openai:URL:MODEL.",
                    param="engine",
                )
        attention = "+".join(policies) or "dense"
        try:
            parse_policy(attention)
            asked = parse_drafter(drafter)
        except InvalidRequest as error:
            raise EvalError(f"the engine {name!r}: {error}", param="engine") from error
        return cls(name, attention, drafter, retrieval, asked.keyed and not asked.lossy)


class LocalEngine:
    """One point of an engine that runs; several points share its weights.

    Raises:
        EvalError: the model does not allow the point's attention policy.
    """

    def __init__(self, engine: AsyncEngine, point: Point, owner: str = EVERYBODY) -> None:
        """owner: whose cached prefixes it finds."""
        try:
            parse_policy(point.attention).check(engine.engine.shape)
        except SparseAttentionError as error:
            raise EvalError(f"the engine {point.name!r}: {error}", param="engine") from error
        self.name = point.name
        self.point = point
        self.window = engine.engine.max_model_len
        self._engine = engine
        self._owner = owner

    def describe(self) -> dict[str, Any]:
        engine = self._engine.engine
        return {
            "kind": "folio",
            "model": os.path.basename(engine.loaded.name.rstrip("/")),
            "attention": self.point.attention,
            "drafter": self.point.drafter,
            "retrieval": self.point.retrieval,
            "same_tokens": self.point.same_tokens,
            "dtype": engine.config.dtype,
            "device": engine.config.device,
            "window": self.window,
        }

    def answer(self, prompt: ModelInput, new_tokens: int) -> Reply:
        point = self.point
        params = SamplingParams(
            max_tokens=new_tokens, attention=point.attention, drafter=point.drafter, owner=self._owner
        )
        began = time.perf_counter()
        [found] = self._engine.generate([prompt.ids], params, [DraftSources(documents=prompt.documents)])
        total_s = time.perf_counter() - began
        if found.error is not None:
            raise EvalError(f"the engine failed: {found.error}")
        first = found.times[0] if found.times else total_s
        return Reply(
            token_ids=tuple(found.token_ids),
            text=found.text,
            finish_reason=found.finish_reason,
            prompt_tokens=len(prompt.ids),
            ttft_s=first,
            total_s=total_s,
            decode_tokens_per_s=_rate(len(found.token_ids), first, total_s),
            stats=_figures(found.stats),
        )


class OpenAIEngine:
    """An OpenAI-compatible endpoint: ``openai:http://host:port/v1:model``.

    Conversations go to /chat/completions, running text to /completions, both streamed. The key is taken from
    OPENAI_API_KEY.
    """

    def __init__(self, name: str, *, window: int, timeout_s: float = 1800) -> None:
        self.name = name
        self.window = window
        parts = _ENDPOINT.fullmatch(name.removeprefix(OPENAI))
        if parts is None:
            raise EvalError(f"{name!r} holds no URL", hint="Write openai:http://HOST:PORT/v1:MODEL.", param="engine")
        url, self.model = parts.groups()
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout_s)

    def describe(self) -> dict[str, Any]:
        return {"kind": "openai", "model": self._model(), "window": self.window}

    def answer(self, prompt: ModelInput, new_tokens: int) -> Reply:
        body: dict[str, Any] = {"model": self._model(), "max_tokens": new_tokens, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        path = "/chat/completions" if prompt.messages else "/completions"
        body |= {"messages": list(prompt.messages)} if prompt.messages else {"prompt": prompt.text}
        began = time.perf_counter()
        pieces: list[str] = []
        first, finish = None, "stop"
        usage: dict[str, Any] = {}
        try:
            for chunk in self._stream(path, body):
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices", ()):
                    piece = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                    finish = choice.get("finish_reason") or finish
                    if piece:
                        first = first or time.perf_counter()
                        pieces.append(piece)
        except httpx.HTTPError as error:
            raise EvalError(f"{self.name}: {type(error).__name__}: {error}", hint="Is the server running?") from error
        ended = time.perf_counter()
        generated = int(usage.get("completion_tokens") or len(pieces))
        return Reply(
            token_ids=(),
            text="".join(pieces),
            finish_reason=finish,
            prompt_tokens=int(usage.get("prompt_tokens") or len(prompt.ids)),
            ttft_s=(first or ended) - began,
            total_s=ended - began,
            decode_tokens_per_s=_rate(generated, first, ended),
            stats={"output_tokens": generated},
        )

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with self._client.stream("POST", path, json=body) as response:
            if response.status_code >= 400:
                said = response.read().decode("utf-8", "replace")[:300]
                raise EvalError(f"{self.name} answered {response.status_code}: {said}")
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                try:
                    yield json.loads(data)
                except json.JSONDecodeError as error:
                    raise EvalError(f"{self.name} sent a chunk that is not JSON: {data[:80]!r}") from error

    def _model(self) -> str:
        """The model asked for, or the only one that the endpoint lists."""
        if not self.model:
            try:
                listed = self._client.get("/models").raise_for_status().json()["data"]
                self.model = listed[0]["id"]
            except (httpx.HTTPError, KeyError, IndexError, ValueError) as error:
                raise EvalError(
                    f"{self.name} does not list its models", hint="Write openai:URL:MODEL.", param="engine"
                ) from error
        return self.model


def folder_name(engine: str) -> str:
    """An engine's name as the name of its folder of results."""
    return re.sub(r"[^\w.+=,-]+", "_", engine).strip("_") or "engine"


def _figures(stats: Mapping[str, Any]) -> dict[str, Any]:
    """What the rows keep of the engine's statistics: plain values, and the counts of drafting."""
    kept = {key: value for key, value in stats.items() if isinstance(value, int | float | str)}
    drafting = stats.get("drafting")
    if drafting:
        kept |= {"drafted_tokens": drafting["drafted"], "accepted_tokens": drafting["accepted"]}
    return kept


def _rate(tokens: int, first: float | None, ended: float) -> float | None:
    return (tokens - 1) / (ended - first) if first is not None and tokens > 1 and ended > first else None
