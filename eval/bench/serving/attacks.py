"""What somebody with a key, or without one, may try against a running service; `folio bench hostile` and tests/security
run it.

Each attack is a function of the service and the attacker's key, and returns the sentence with which it was answered.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import random
import socket
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

PATIENCE_S = 150.0
CLOSED = "the connection was closed"


@dataclass(frozen=True)
class Target:
    """A service on a loopback port, and the attacker's key to it."""

    port: int
    key: str
    model: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        if body is not None:
            options["content"] = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        return httpx.post(f"{self.url}{path}", headers=headers, timeout=PATIENCE_S, **options)

    def upload(self, name: str, data: bytes) -> str:
        """The job."""
        answer = self.post("/v1/documents", files={"file": (name, data)})
        answer.raise_for_status()
        return str(answer.json()["id"])

    def ended(self, job: str, patience_s: float = PATIENCE_S) -> str:
        """What became of an upload, or how far it is when the patience is over."""
        deadline = time.monotonic() + patience_s
        while True:
            answer = httpx.get(f"{self.url}/v1/jobs/{job}", headers={"Authorization": f"Bearer {self.key}"}, timeout=60)
            found = answer.json()
            if found["status"] not in ("queued", "running"):
                documents = [one["error"] or f"{one['status']}, {one['chunks']} chunks" for one in found["documents"]]
                return found["error"] or "; ".join(documents)
            if time.monotonic() > deadline:
                return f"{found['status']} after {patience_s:.0f} s"
            time.sleep(0.1)

    @contextlib.contextmanager
    def line(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as opened:
            yield opened

    def head(self, *fields: str, first: str = "GET /v1/documents HTTP/1.1", host: str | None = None) -> bytes:
        named = [] if host == "" else [f"Host: {host or f'127.0.0.1:{self.port}'}"]
        return "\r\n".join([first, *named, f"Authorization: Bearer {self.key}", *fields, "", ""]).encode()


@dataclass(frozen=True)
class Attack:
    """One attack. `kind` names its file in tests/security."""

    kind: str
    name: str
    run: Callable[[Target], str]
    slow: bool = False
    """It takes more than some seconds."""


def said(answer: httpx.Response) -> str:
    """The sentence of a response."""
    try:
        body = answer.json()
    except ValueError:
        return f"{answer.status_code} {answer.text[:100]}"
    detail = body.get("detail") or (body.get("error") or {}).get("message") or "taken"
    return f"{answer.status_code} {detail}"


def sent(line: socket.socket, pieces: Iterator[bytes] | Sequence[bytes]) -> str:
    """What is answered to bytes that are sent until nobody takes them any longer."""
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            line.sendall(piece)
    return heard(line)


def heard(line: socket.socket) -> str:
    """The sentence of a raw response."""
    received = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while b"\r\n\r\n" not in received or not received.rstrip().endswith(b"}"):
            part = line.recv(1 << 16)
            if not part:
                break
            received += part
    if not received:
        return CLOSED
    head, _, body = received.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1].decode()
    with contextlib.suppress(ValueError, AttributeError):
        return f"{status} {json.loads(body).get('detail', 'taken')}"
    return f"{status} {body[:100].decode('ascii', 'replace')}"


# -- heads


def _endless_header(target: Target) -> str:
    with target.line() as line:
        first = target.head()[:-2] + b"X-Long: "
        return sent(line, itertools.chain([first], itertools.repeat(b"a" * (1 << 20), 237)))


def _many_headers(target: Target) -> str:
    with target.line() as line:
        fields = (b"".join(b"X-%d: y\r\n" % n for n in range(at, at + 10_000)) for at in range(0, 1_000_000, 10_000))
        return sent(line, itertools.chain([target.head()[:-2]], fields))


def _some_headers(target: Target) -> str:
    """Which one read of the socket brings whole."""
    with target.line() as line:
        return sent(line, [target.head(*(f"X-{n}: y" for n in range(2000)))])


def _long_request_line(target: Target) -> str:
    with target.line() as line:
        return sent(line, itertools.chain([b"GET /"], itertools.repeat(b"a" * (1 << 20), 100)))


def _endless_trailers(target: Target) -> str:
    with target.line() as line:
        begun = target.head("Transfer-Encoding: chunked", "Content-Type: application/json", first=_POST_SEARCH)
        return sent(line, itertools.chain([begun + b"0\r\n"], (b"X: %s\r\n" % (b"y" * 1000) for _ in range(100_000))))


def _endless_extension(target: Target) -> str:
    with target.line() as line:
        begun = target.head("Transfer-Encoding: chunked", "Content-Type: application/json", first=_POST_SEARCH)
        return sent(line, itertools.chain([begun + b"5;x="], itertools.repeat(b"y" * (1 << 20), 100)))


def _two_hosts(target: Target) -> str:
    with target.line() as line:
        return sent(line, [target.head("Host: 127.0.0.1")])


def _no_host(target: Target) -> str:
    with target.line() as line:
        return sent(line, [target.head(host="")])


def _half_an_address(target: Target) -> str:
    with target.line() as line:
        return sent(line, [target.head(host="[::1")])


def _name_of_tests(target: Target) -> str:
    with target.line() as line:
        return sent(line, [target.head(host="testserver")])


def _many_pipelined(target: Target) -> str:
    with target.line() as line:
        return sent(line, [target.head() * 5000])


_POST_SEARCH = "POST /v1/search HTTP/1.1"

# -- connections


def _half_open(target: Target) -> str:
    """1,000 connections that never finish a head, over which others are served; all of them end."""
    lines = [socket.create_connection(("127.0.0.1", target.port), timeout=PATIENCE_S) for _ in range(1000)]
    for line in lines:
        line.sendall(b"GET / HTTP/1.1\r\nHost: 127")
    answers = [heard(line) for line in lines]
    for line in lines:
        line.close()
    return max(set(answers), key=answers.count)


def _idle(target: Target) -> str:
    """3,000 connections that send nothing, opened again whenever they are closed."""
    deadline = time.monotonic() + 15
    lines: list[socket.socket] = []
    closed = 0
    while time.monotonic() < deadline:
        while len(lines) < 3000 and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                line = socket.create_connection(("127.0.0.1", target.port), timeout=1)
                line.setblocking(False)
                lines.append(line)
        open_ = []
        for line in lines:
            try:
                if line.recv(1) == b"":
                    raise ConnectionError
            except BlockingIOError:
                open_.append(line)
                continue
            except OSError:
                pass
            line.close()
            closed += 1
        lines = open_
        time.sleep(0.2)
    for line in lines:
        line.close()
    return f"{closed} were closed"


def _dripping_bodies(target: Target) -> str:
    lines = [socket.create_connection(("127.0.0.1", target.port), timeout=PATIENCE_S) for _ in range(30)]
    begun = target.head("Content-Length: 1000000", "Content-Type: application/json", first=_POST_SEARCH)
    for line in lines:
        line.sendall(begun)
    answers = []
    deadline = time.monotonic() + 45
    while lines and time.monotonic() < deadline:
        for line in list(lines):
            try:
                line.sendall(b" ")
                line.settimeout(0.01)
                line.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                continue
            except OSError:
                pass
            line.settimeout(1)
            answers.append(heard(line))
            lines.remove(line)
            line.close()
        time.sleep(1)
    return max(set(answers), key=answers.count) if not lines else f"{len(lines)} are open after 45 s"


def _aborted_streams(target: Target) -> str:
    body = json.dumps({"model": target.model, "prompt": "x", "max_tokens": 200, "stream": True, "ignore_eos": True})
    head = target.head(
        f"Content-Length: {len(body)}", "Content-Type: application/json", first="POST /v1/completions HTTP/1.1"
    )
    seen: list[str] = []

    def one(_: int) -> None:
        with target.line() as line:
            line.sendall(head + body.encode())
            seen.append(line.recv(200).split(b" ", 2)[1].decode())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(300)))
    return f"{seen.count('200')} begun, {seen.count('429')} refused"


# -- bodies


def _deep_json(target: Target) -> str:
    return said(target.post("/v1/search", b"[" * (10 << 20)))


def _deeper_than_python(target: Target) -> str:
    nested: bytes = b'{"a":' * 900 + b"1" + b"}" * 900
    body = b'{"model":"%s","prompt":"x","structured_outputs":{"json":%s}}' % (target.model.encode(), nested)
    return said(target.post("/v1/completions", body))


def _many_values(target: Target) -> str:
    body = b'{"model":"x","prompt":[' + b"1," * 7_000_000 + b"1]}"
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(target.post, "/v1/completions", body) for _ in range(8)]
        return said(asked[0].result())


def _as_many_values_as_may_be(target: Target) -> str:
    body = b'{"model":"x","prompt":[' + b"1," * 999_000 + b"1]}"
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(target.post, "/v1/completions", body) for _ in range(16)]
        return said(asked[0].result())


def _tiny_chunks(target: Target) -> str:
    with target.line() as line:
        begun = target.head("Transfer-Encoding: chunked", "Content-Type: application/json", first=_POST_SEARCH)
        return sent(line, itertools.chain([begun], itertools.repeat(b"1\r\n \r\n" * 50_000, 20), [b"0\r\n\r\n"]))


# -- prompts


def _long_prompts(target: Target, path: str, text: str) -> str:
    def ask(_: int) -> httpx.Response:
        asked = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
        return target.post(path, {"model": target.model, "max_tokens": 4, **asked})

    with ThreadPoolExecutor(3) as pool:
        return said([*pool.map(ask, range(3))][-1])


def _of_chats(target: Target) -> str:
    return _long_prompts(target, "/v1/chat/completions", "The bridge has 7 arches & a toll. " * 90_000)


def _of_completions(target: Target) -> str:
    return _long_prompts(target, "/v1/completions", "&" * 3_000_000)


def _of_one_word(target: Target) -> str:
    return _long_prompts(target, "/v1/completions", "a" * 3_000_000)


def _of_spaces(target: Target) -> str:
    return _long_prompts(target, "/v1/chat/completions", " " * 3_000_000)


def _gone_clients(target: Target) -> str:
    """Who sends a long prompt and leaves."""
    body = json.dumps({"model": target.model, "prompt": "é" * 100_000, "max_tokens": 200}).encode()
    fields = f"Content-Length: {len(body)}", "Content-Type: application/json"
    for _ in range(20):
        with target.line() as line:
            line.sendall(target.head(*fields, first="POST /v1/completions HTTP/1.1") + body)
    return CLOSED


def _embeddings(target: Target) -> str:
    return said(target.post("/v1/embeddings", {"model": "minilm", "input": ["&" * 500_000] * 20}))


def _queries(target: Target) -> str:
    texts = ["\u0301a" * 10_000, "𝔞" * 20_000, "日本" * 10_000, "é " * 10_000, "[1] ." * 4000]
    answers = [
        target.post("/v1/search", {"query": text, "limit": 100, "mode": mode, "rerank": True})
        for text in texts
        for mode in ("hybrid", "dense", "sparse")
    ]
    return said(max(answers, key=lambda answer: answer.status_code))


def _histories(target: Target) -> str:
    turns = [{"role": role, "content": text * 60} for role, text in (("user", "And it? "), ("assistant", "1.1 A.B. "))]
    body = {"question": "What about " + "it, " * 4000 + "?", "history": turns * 400, "max_tokens": 4}
    return said(target.post("/v1/answer", body))


# -- answers


def _for_a_while(target: Target, path: str, bodies: Sequence[Any], seconds: float = 12.0) -> str:
    """Ask all at once, and leave after a while, whatever has come."""
    seen: list[str] = []
    deadline = time.monotonic() + seconds
    headers = {"Authorization": f"Bearer {target.key}"}

    def ask(body: Any) -> None:
        patience = httpx.Timeout(PATIENCE_S, read=seconds)
        with (
            contextlib.suppress(httpx.TimeoutException),
            httpx.stream("POST", f"{target.url}{path}", json=body, headers=headers, timeout=patience) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                seen.append(said(answer))
                return
            seen.append("200 begun")
            for _ in answer.iter_raw():
                if time.monotonic() > deadline:
                    return
        time.sleep(max(0.0, deadline - time.monotonic()))

    with ThreadPoolExecutor(len(bodies)) as pool:
        list(pool.map(ask, bodies))
    return "; ".join(f"{seen.count(one)} x {one[:60]}" for one in sorted(set(seen))) or "nothing came"


def _endless_answers(target: Target) -> str:
    """More than the engine has places for, and as many as its queue has."""
    body = {"model": target.model, "prompt": "x", "max_tokens": 30_000, "ignore_eos": True, "n": 16, "stream": True}
    return _for_a_while(target, "/v1/completions", [body] * 6)


def _full_windows(target: Target) -> str:
    chance = random.Random(1)
    prompts = [[chance.randrange(20, 500) for _ in range(60_000)] for _ in range(8)]
    more = {"model": target.model, "max_tokens": 4, "stream": True}
    return _for_a_while(target, "/v1/completions", [{"prompt": prompt, **more} for prompt in prompts])


def _scored_prompts(target: Target) -> str:
    body = {"model": target.model, "prompt": [30] * 30_000, "max_tokens": 1, "prompt_logprobs": 20, "n": 16}
    return said(target.post("/v1/completions", body))


def _rankings(target: Target) -> str:
    """Searches each of which has a hundred passages read."""
    text = "".join(f"Bridge {n} has {n} arches, a toll and a keeper. " * 12 + "\n\n" for n in range(200))
    target.ended(target.upload("bridges.txt", text.encode()))
    bodies = [{"query": f"Which bridge has {n} arches?", "limit": 100, "rerank": True} for n in range(24)]
    return _for_a_while(target, "/v1/search", bodies)


# -- grammars


def _chain_of_references(target: Target) -> str:
    links: dict[str, Any] = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(1000)}
    schema = {"$defs": links | {"d1000": {"type": "string"}}, "$ref": "#/$defs/d0"}
    return _constrained(target, json=schema)


def _many_rules(target: Target) -> str:
    rules = "\n".join(f'r{n}: "a" r{n + 1}' for n in range(5000))
    return _constrained(target, grammar=f'start: r0\n{rules}\nr5000: "b"')


def _ambiguous_grammar(target: Target) -> str:
    return _constrained(target, grammar='start: a\na: a a | "x" | a a a | ')


def _repetitions(target: Target) -> str:
    return _constrained(target, regex="((a{1,1000}){1,1000}){1,1000}")


def _many_ways(target: Target) -> str:
    return _constrained(target, regex=f"({'|'.join('a' * n for n in range(1, 400))}){{400}}")


def _constrained(target: Target, **constraint: Any) -> str:
    body = {"model": target.model, "prompt": "x", "max_tokens": 4, "structured_outputs": constraint}
    return said(target.post("/v1/completions", body))


# -- files


def docx(document: bytes, **parts: bytes) -> bytes:
    """A file of Word's of one part, and of others that nobody names."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", _TYPES)
        archive.writestr("_rels/.rels", _RELATIONS)
        archive.writestr("word/document.xml", document)
        for name, data in parts.items():
            archive.writestr(name, data)
    return packed.getvalue()


_OOXML = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
_TYPES = (
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/word/document.xml" ContentType="{_OOXML}"/></Types>'
)
_RELATIONS = (
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r" '
    'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
    'Target="word/document.xml"/></Relationships>'
)
_WORD = b'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>%s</w:body></w:document>'
_TABLE = b"<w:tbl><w:tr><w:tc>%s</w:tc></w:tr></w:tbl>"


def _nested_tables() -> bytes:
    inner = b"<w:p><w:r><w:t>x</w:t></w:r></w:p>"
    for _ in range(150):
        inner = _TABLE % (inner * 2 if len(inner) < 3 << 20 else inner)
    return docx(_WORD % inner)


def _office_file(target: Target) -> str:
    return target.ended(target.upload("nested.docx", _nested_tables()))


def _packed_file(target: Target) -> str:
    paragraph = b"<w:p><w:r><w:t>x</w:t></w:r></w:p>"
    return target.ended(target.upload("packed.docx", docx(_WORD % (paragraph * 1_000_000))))


def _comments(target: Target) -> str:
    return "; ".join(target.ended(target.upload(name, b"<!---->" * 64)) for name in ("comments.txt", "comments"))


def _beside_another(target: Target, name: str, data: bytes) -> str:
    """What may take minutes without harm to others is given up after a while."""
    job = target.upload(name, data)
    try:
        return target.ended(job, patience_s=20)
    finally:
        target.post(f"/v1/jobs/{job}/cancel")


def _ampersands(target: Target) -> str:
    return _beside_another(target, "ampersands.txt", b"&" * 4_000_000)


def _headings(target: Target) -> str:
    return _beside_another(target, "headings.md", b"## a\n\n" * 600_000)


def _open_comments(target: Target) -> str:
    return _beside_another(target, "open.md", b"<!--" * 500_000)


def _blank_heading(target: Target) -> str:
    return _beside_another(target, "blank.md", b"# a" + b" " * 500_000 + b"\x0bx")


def _many_files(target: Target) -> str:
    """More than there are workers, each of which takes long."""
    nested = _nested_tables()
    jobs = [target.upload(f"{number}.docx", nested + bytes(number)) for number in range(6)]
    try:
        return target.ended(jobs[0], patience_s=10)
    finally:
        for job in jobs:
            target.post(f"/v1/jobs/{job}/cancel")


def _multipart(target: Target) -> str:
    """An upload made of what could begin its boundary, and a part's header without an end."""
    boundary = "b" * 60
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n'.encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    almost = f"\r\n--{boundary[:-1]}".encode() * 150_000
    answer = target.post("/v1/documents", head + b"\r\n" + almost + tail, headers=kind)
    if answer.is_success:  # whatever it takes to embed 9 MB, the attacks after this one shall not wait behind it
        target.post(f"/v1/jobs/{answer.json()['id']}/cancel")
    taken = said(answer)
    endless = said(target.post("/v1/documents", head + b"X: " + b"a" * (100 << 20), headers=kind))
    return f"{taken[:20]}; {endless}"


ATTACKS: tuple[Attack, ...] = (
    Attack("heads", "a header of 237 MB", _endless_header),
    Attack("heads", "a million headers", _many_headers),
    Attack("heads", "2,000 headers at once", _some_headers),
    Attack("heads", "a request line of 100 MB", _long_request_line),
    Attack("heads", "100 MB of trailers", _endless_trailers),
    Attack("heads", "100 MB of a chunk's extension", _endless_extension),
    Attack("heads", "two Hosts", _two_hosts),
    Attack("heads", "no Host", _no_host),
    Attack("heads", "Host: [::1", _half_an_address),
    Attack("heads", "Host: testserver", _name_of_tests),
    Attack("heads", "5,000 pipelined requests", _many_pipelined),
    Attack("connections", "1,000 half-open connections", _half_open, slow=True),
    Attack("connections", "3,000 idle connections", _idle, slow=True),
    Attack("connections", "30 bodies that drip", _dripping_bodies, slow=True),
    Attack("connections", "300 aborted streams", _aborted_streams),
    Attack("bodies", "10 MB of [", _deep_json),
    Attack("bodies", "JSON 900 deep", _deeper_than_python),
    Attack("bodies", "7 million values, 8 at once", _many_values),
    Attack("bodies", "a million values, 16 at once", _as_many_values_as_may_be),
    Attack("bodies", "a million chunks of one byte", _tiny_chunks),
    Attack("bodies", "a multipart body of beginnings", _multipart, slow=True),
    Attack("prompts", "three chats of 3 MB", _of_chats),
    Attack("prompts", "three prompts of 3 MB of &", _of_completions),
    Attack("prompts", "three prompts of one word", _of_one_word),
    Attack("prompts", "three chats of 3 MB of spaces", _of_spaces),
    Attack("prompts", "clients that leave", _gone_clients),
    Attack("prompts", "embeddings of 10 MB", _embeddings),
    Attack("prompts", "search queries of 20,000 characters", _queries),
    Attack("prompts", "a history of 800 turns", _histories),
    Attack("answers", "96 answers of 30,000 tokens", _endless_answers, slow=True),
    Attack("answers", "eight prompts that fill the window", _full_windows, slow=True),
    Attack("answers", "millions of log-probabilities", _scored_prompts),
    Attack("answers", "24 rankings of 100 passages", _rankings, slow=True),
    Attack("grammars", "a chain of 1,000 references", _chain_of_references),
    Attack("grammars", "5,000 rules", _many_rules),
    Attack("grammars", "an ambiguous grammar", _ambiguous_grammar),
    Attack("grammars", "a repetition of repetitions", _repetitions),
    Attack("grammars", "an expression of many ways", _many_ways),
    Attack("files", "448 bytes of <!---->", _comments),
    Attack("files", "4 MB of &", _ampersands, slow=True),
    Attack("files", "600,000 headings", _headings, slow=True),
    Attack("files", "500,000 comments that do not end", _open_comments, slow=True),
    Attack("files", "a heading that ends in blanks", _blank_heading, slow=True),
    Attack("files", "an office file of nested tables", _office_file, slow=True),
    Attack("files", "an office file of a million paragraphs", _packed_file, slow=True),
    Attack("files", "six slow files", _many_files, slow=True),
)
