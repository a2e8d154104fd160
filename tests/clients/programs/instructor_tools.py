"""instructor in the mode of tools; run by tests/clients."""

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


def tools() -> dict[str, Any]:
    """The model of pydantic as a tool that has to be called."""
    person = instructor.from_openai(client, mode=instructor.Mode.TOOLS).chat.completions.create(
        model=os.environ["SERVICE_MODEL"],
        response_model=Person,
        messages=[{"role": "user", "content": "Ada Miller is 36 years old. Who is she?"}],
        max_tokens=100,
        temperature=0,
        max_retries=0,
    )
    assert isinstance(person, Person)
    return person.model_dump()
