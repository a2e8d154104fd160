"""litellm: a call, a stream, and the router's fallback for prompts that are too long; run by tests/clients."""

import os
from typing import Any

import litellm

MODEL = f"openai/{os.environ['SERVICE_MODEL']}"
HELLO = [{"role": "user", "content": "Say hello."}]
WHERE: dict[str, Any] = {"api_base": os.environ["SERVICE_BASE"], "api_key": os.environ["SERVICE_KEY"]}


def completion() -> dict[str, Any]:
    """Whole and streamed."""
    whole: Any = litellm.completion(model=MODEL, messages=HELLO, max_tokens=20, temperature=0, **WHERE)
    assert whole.choices[0].message.content
    parts: Any = litellm.completion(model=MODEL, messages=HELLO, max_tokens=20, temperature=0, stream=True, **WHERE)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    return {"said": whole.choices[0].message.content}


def context_fallback() -> dict[str, Any]:
    """What the small model cannot hold goes to the other: here a canned answer."""
    try:
        litellm.completion(
            model=MODEL, messages=[{"role": "user", "content": "word " * 30_000}], max_retries=0, **WHERE
        )
    except litellm.ContextWindowExceededError as error:
        known = type(error).__name__
    router = litellm.Router(
        model_list=[
            {"model_name": "small", "litellm_params": {"model": MODEL, "max_retries": 0, **WHERE}},
            {"model_name": "large", "litellm_params": {"model": MODEL, "mock_response": "from the large one", **WHERE}},
        ],
        context_window_fallbacks=[{"small": ["large"]}],
        num_retries=0,
    )
    found: Any = router.completion(model="small", messages=[{"role": "user", "content": "word " * 30_000}])
    assert found.choices[0].message.content == "from the large one"
    return {"error": known}
