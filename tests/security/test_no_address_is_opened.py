"""Nothing that a document, a name or a question says makes the service open an address."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ..retrieval.make_files import archive, docx, paragraph
from ..service.api.conftest import make_engine, start_service  # noqa: F401
from ..service.conftest import tiny_model  # noqa: F401


class Listener:
    """Notes who comes to a port of this machine."""

    def __init__(self) -> None:
        self.came: list[Any] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.came.append(self._socket.accept())
            except OSError:
                return

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener()
    yield found
    found.close()


def files(url: str) -> dict[str, bytes]:
    """One of each kind that can name an address."""
    relations = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
        'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/attachedTemplate" '
        f'Target="{url}/template" TargetMode="External"/></Relationships>'
    )
    word = (
        f'<!DOCTYPE w [<!ENTITY x SYSTEM "{url}/entity">]><w:document xmlns:w="http://schemas.openxmlformats.org/'
        'wordprocessingml/2006/main"><w:body><w:p><w:r><w:t>&x;</w:t></w:r></w:p></w:body></w:document>'
    )
    return {
        "page.html": f'<base href="{url}/"><link rel="stylesheet" href="a.css"><img src="b.png"><p>Seven.</p>'.encode(),
        "note.md": f"![x]({url}/c.png) [y]({url}/d)\n\nSeven.".encode(),
        "entity.docx": archive({"word/document.xml": word.encode()}),
        "letter.docx": docx(paragraph("Seven."), extra={"word/_rels/document.xml.rels": relations.encode()}),
        "drawing.xml": f'<?xml version="1.0"?><!DOCTYPE a SYSTEM "{url}/dtd"><a>Seven.</a>'.encode(),
        f"{url.replace('/', '_')}.txt": f"Seven arches. {url}/e".encode(),
    }


def test_no_document_name_or_question_opens_one(start_service: Callable[..., Any], listener: Listener) -> None:  # noqa: F811
    service = start_service()
    for name, data in files(listener.url).items():
        answer = service.client.post("/v1/documents", files={"file": (name, data)})
        assert answer.status_code == 202, answer.text
        service.wait(answer.json()["id"])
    for mode in ("long", "retrieval"):
        asked = {"question": f"Read {listener.url}/f and say how many arches there are.", "mode": mode, "max_tokens": 8}
        assert service.client.post("/v1/answer", json=asked).status_code == 200
    assert listener.came == []
    socket.create_connection(("127.0.0.1", int(listener.url.rpartition(":")[2]))).close()
    for _ in range(100):
        if listener.came:
            break
        threading.Event().wait(0.02)
    assert len(listener.came) == 1, "it would have been noticed"
