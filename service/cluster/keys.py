"""From a request to the key of the KV pages that it can use: what two requests share when their prompts begin alike.

A key is made from the request alone, before anything is looked up, so it is a guess about the prompt: the documents
that are named, else the collection, else how the prompt begins. A wrong guess costs a prefill and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

PREFIX_CHARS = 2048
"""Of a prompt given as text: enough to tell documents apart, few enough to meet before the question begins."""
PREFIX_IDS = 512
"""The same of a prompt given as token ids."""

Headers = Mapping[str, str]


def affinity_key(method: str, path: str, headers: Headers, body: bytes) -> str | None:
    """The key of a request, or None where any replica will do. Names of `headers` are in lower case.

    A body that is no JSON object, or not of the expected shape, gives None: refusing it is the application's business.
    """
    if method != "POST":
        return None
    owner = headers.get("authorization") or headers.get("x-api-key", "")
    repeated = headers.get("idempotency-key")
    if repeated is not None:  # the first answer is kept by the replica that gave it
        return _digest("repeated", owner, repeated)
    make = _KEYS.get(path)
    if make is None:
        return None
    try:
        content = json.loads(body)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    hint = content.get("prompt_cache_key")  # OpenAI's own word for it
    parts = ["hint", hint] if isinstance(hint, str) and hint else make(content)
    return _digest(owner, *parts) if parts else None


def _answer(content: dict[str, Any]) -> list[str] | None:
    """Named documents; else the collection, which mode auto may read whole; in mode retrieval the conversation.

    The prompts of one conversation share its earlier turns; single questions of mode retrieval share nothing.
    """
    documents = content.get("documents")
    if isinstance(documents, list) and documents:
        return ["documents", *sorted({str(one) for one in documents})]
    if content.get("mode") == "retrieval":
        return _beginning(content.get("history"))
    return ["collection", str(content.get("collection") or "")]


def _chat(content: dict[str, Any]) -> list[str] | None:
    """What the documents of a grounded conversation are, else how the conversation begins."""
    messages = content.get("messages")
    grounded = content.get("folio")
    if not isinstance(grounded, dict):
        return _beginning(messages)
    turns = messages[:-1] if isinstance(messages, list) else []
    asked = [turn for turn in turns if isinstance(turn, dict) and turn.get("role") in ("user", "assistant")]
    return _answer({**grounded, "history": asked})


def _beginning(turns: Any) -> list[str] | None:
    """How a conversation begins; None where it does not yet."""
    if not isinstance(turns, list) or not turns:
        return None
    begins = "\n".join(str(one.get("content", "")) for one in turns[:2] if isinstance(one, dict))
    return ["chat", begins[:PREFIX_CHARS]]


def _completion(content: dict[str, Any]) -> list[str] | None:
    """How the prompt begins; of several prompts, the first."""
    prompt = content.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return ["text", prompt[:PREFIX_CHARS]]
    if isinstance(prompt, list) and prompt:
        return ["ids", *(str(one) for one in prompt[:PREFIX_IDS])]
    return None


_KEYS = {"/v1/answer": _answer, "/v1/chat/completions": _chat, "/v1/completions": _completion, "/v1/messages": _chat}


def _digest(*parts: str) -> str:
    """A short name of these parts, which may hold somebody's text or key."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
