"""instructor: the schema as JSON, and as a tool; run by tests/clients."""

import os
from typing import Any

import instructor
import openai
from pydantic import BaseModel

client = openai.OpenAI(base_url=os.environ["SERVICE_BASE"], api_key=os.environ["SERVICE_KEY"], timeout=300)


class Person(BaseModel):
    """A person who is named."""

    name: str
    age: int


def _ask(mode: Any) -> dict[str, Any]:
    asked = instructor.from_openai(client, mode=mode)
    person = asked.chat.completions.create(
        model=os.environ["SERVICE_MODEL"],
        response_model=Person,
        messages=[{"role": "user", "content": "Ada Miller is 36 years old. Who is she?"}],
        max_tokens=100,
        temperature=0,
        max_retries=0,
    )
    assert isinstance(person, Person)
    return person.model_dump()


def json_schema() -> dict[str, Any]:
    """The schema as response_format."""
    return _ask(instructor.Mode.JSON_SCHEMA)


def tools() -> dict[str, Any]:
    """The model of pydantic as a tool that has to be called."""
    return _ask(instructor.Mode.TOOLS)
