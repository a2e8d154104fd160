"""The official Python client; run by tests/clients."""

import os
from collections.abc import Callable
from typing import Any

import openai
from pydantic import BaseModel

client = openai.OpenAI(
    base_url=os.environ["SERVICE_BASE"], api_key=os.environ["SERVICE_KEY"], max_retries=0, timeout=300
)
MODEL = os.environ["SERVICE_MODEL"]
HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]


def chat() -> dict[str, Any]:
    """A turn, its answer sent back, and another."""
    first = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=20, temperature=0)
    assert first.usage is not None
    assert first.choices[0].message.content
    again = [*HELLO, first.choices[0].message, {"role": "user", "content": "Once more."}]
    second = client.chat.completions.create(model=MODEL, messages=again, max_completion_tokens=20)
    assert second.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert first._request_id
    return {"request_id": first._request_id, "model": client.models.list().data[0].id}


def stream() -> dict[str, Any]:
    """The chunks' sum is the whole answer; usage comes last."""
    asked: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 400, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as events:
        final = [event for event in events if event.type == "content.done"]
        done = events.get_final_completion()
    assert final[0].content == whole
    assert done.usage is not None
    return {"tokens": done.usage.completion_tokens}


class Person(BaseModel):
    """What is asked for."""

    name: str
    age: int


def structured() -> dict[str, Any]:
    """`parse` with a model of pydantic."""
    messages: Any = [{"role": "user", "content": "Ada Miller is 36 years old. Who is she?"}]
    parsed = client.chat.completions.parse(
        model=MODEL, messages=messages, response_format=Person, max_tokens=80, temperature=0
    )
    person = parsed.choices[0].message.parsed
    assert isinstance(person, Person)
    return person.model_dump()


def logprobs() -> dict[str, Any]:
    """Bytes add up to the text; the prompt is scored by echo."""
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Answer with one emoji."}],
        max_tokens=12,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    ).choices[0]
    found = reply.logprobs.content if reply.logprobs else None
    assert found
    text = b"".join(bytes(one.bytes or []) for one in found).decode(errors="ignore")
    assert text.startswith(reply.message.content or "?")
    echoed = client.completions.create(model=MODEL, prompt="The sky is blue", echo=True, logprobs=1, max_tokens=0)
    scores = echoed.choices[0].logprobs
    assert scores is not None
    assert echoed.choices[0].text == "The sky is blue"
    assert (scores.token_logprobs or [0])[0] is None
    assert all(one < 0 for one in (scores.token_logprobs or [])[1:])
    return {"tokens": scores.tokens, "offsets": scores.text_offset}


def errors() -> dict[str, Any]:
    """Errors are of the classes that programs catch."""
    long: Any = [{"role": "user", "content": "word " * 30_000}]
    too_long = _raised(lambda: client.chat.completions.create(model=MODEL, messages=long))
    assert isinstance(too_long, openai.BadRequestError)
    unknown = _raised(lambda: client.models.retrieve("nosuch"))
    assert isinstance(unknown, openai.NotFoundError)
    stranger = _raised(client.with_options(api_key="wrong").models.list)
    assert isinstance(stranger, openai.AuthenticationError)
    assert (too_long.code, unknown.param) == ("context_length_exceeded", "model")
    return {"request_id": stranger.request_id}


def _raised(call: Callable[[], Any]) -> Exception:
    try:
        call()
    except openai.OpenAIError as error:
        return error
    raise AssertionError("nothing was raised")
