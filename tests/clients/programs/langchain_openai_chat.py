"""LangChain's OpenAI integration; run by tests/clients."""

import os
import time
from typing import Any

import httpx
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

KEY: Any = os.environ["SERVICE_KEY"]
chat = ChatOpenAI(
    model=os.environ["SERVICE_MODEL"], base_url=os.environ["SERVICE_BASE"], api_key=KEY, temperature=0, max_tokens=40
)


class Person(BaseModel):
    """A person who is named."""

    name: str
    age: int


def conversation() -> dict[str, Any]:
    """Two turns, the second streamed."""
    turns: list[Any] = [SystemMessage("Be brief."), HumanMessage("Say hello.")]
    first = chat.invoke(turns)
    assert first.content
    assert first.usage_metadata
    turns += [first, HumanMessage("Once more.")]
    streamed = "".join(str(chunk.content) for chunk in chat.stream(turns))
    assert streamed
    return {"first": first.content, "second": streamed}


def documents() -> dict[str, Any]:
    """An answer from a document, behind a system message; its citations."""
    service = httpx.Client(base_url=os.environ["SERVICE_BASE"], headers={"Authorization": f"Bearer {KEY}"}, timeout=120)
    file = {"file": ("bridge.txt", b"The bridge at Hampton was built by Ada Miller in 1862.")}
    job = service.post("/documents", files=file).raise_for_status().json()
    while job["status"] in ("queued", "running"):
        job = service.get(f"/jobs/{job['id']}").raise_for_status().json()
        time.sleep(0.1)
    folio = {"documents": [job["documents"][0]["id"]], "mode": "long"}
    asking = chat.bind(extra_body={"folio": folio})
    turns: list[Any] = [SystemMessage("Answer in one short sentence."), HumanMessage("Who built the bridge?")]
    reply = asking.invoke(turns)
    assert "bridge" in str(reply.content).lower(), reply.content
    return {"answer": reply.content}


def structured() -> dict[str, Any]:
    """`with_structured_output` by JSON schema."""
    asked = chat.with_structured_output(Person, method="json_schema")
    found: Any = asked.invoke("Ada Miller is 36 years old. Who is she?")
    assert isinstance(found, Person)
    return found.model_dump()


def embeddings() -> dict[str, Any]:
    """Texts of the embedding model."""
    embedder = OpenAIEmbeddings(
        model="minilm", base_url=os.environ["SERVICE_BASE"], api_key=KEY, check_embedding_ctx_length=False
    )
    one, two = embedder.embed_documents(["a bridge", "a tax return"])
    query = embedder.embed_query("a bridge")
    assert sum(a * b for a, b in zip(one, query, strict=True)) > sum(a * b for a, b in zip(two, query, strict=True))
    return {"dimensions": len(one)}
