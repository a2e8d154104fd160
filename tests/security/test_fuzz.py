"""Mutated files of every kind, and requests made from the API's description: no 5xx, no stall, no child left."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.bench.serving.attacks import Attack, Target
from eval.bench.serving.hostile import House

sys.path.insert(0, str(Path(__file__).parents[1] / "retrieval"))  # make_files

HANDBOOK = Path(__file__).parents[2] / "docs" / "handbook"
MORSELS = [
    b"\x00", b"\xff" * 8, b"<!--", b"]]>", b"&a;", b"%PDF-", b"PK\x03\x04", b"\r\n\r\n", b"endobj", b"<w:tbl>",
    b"{\\rtf1", b"9" * 40, b"-1", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"../" * 9, b" " * 5000, b"<" * 999, b"(" * 999,
]  # fmt: skip
STALL_S = 3.0


def seeds(shared: Path) -> dict[str, bytes]:
    """Sound files of every kind."""
    import make_files

    found = {path.name: path.read_bytes() for path in (*HANDBOOK.glob("*.md"), *(shared / "cases").iterdir())}
    found |= {path.name: path.read_bytes()[: 1 << 16] for path in (shared / "corpus").iterdir()}
    text = make_files.paragraph("A bridge of seven arches.")
    page = "<html><body><h1>Bridge</h1><table><tr><td>7</td></tr></table></body></html>"
    return found | {
        "a.docx": make_files.docx(text * 20),
        "a.xlsx": make_files.xlsx([["a", "b"], ["1", "2"]]),
        "a.epub": make_files.epub([page]),
        "a.pdf": make_files.pdf(["A bridge", "of seven arches"]),
        "a.rtf": rb"{\rtf1\ansi{\fonttbl\f0 Arial;}\f0 A bridge of \b seven\b0 arches.\par}",
        "a.csv": b"name,arches\nAvignon,22\n" * 50,
        "a.eml": b"Subject: bridge\nMIME-Version: 1.0\nContent-Type: text/html\n\n" + page.encode(),
        "a.html": page.encode(),
    }


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """The same with some of it changed; of an archive, one of the files in it."""
    if data[:2] == b"PK" and chance.random() < 0.7:
        return _mutated_within(data, others, chance)
    for _ in range(chance.randint(1, 6)):
        data = _changed(data, chance.choice(others), chance)
    return data[: 4 << 20]


def _changed(data: bytes, other: bytes, chance: random.Random) -> bytes:
    at, length = chance.randrange(len(data) + 1), chance.randint(1, 200)
    head, piece, tail = data[:at], data[at : at + length], data[at + length :]
    match chance.randrange(6):
        case 0:
            return head + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 1:
            return head + tail
        case 2:
            return head + piece * chance.randint(2, 200) + tail
        case 3:
            return head + chance.choice(MORSELS) * chance.randint(1, 50) + piece + tail
        case 4:
            there = chance.randrange(len(other) + 1)
            return head + other[there : there + 10 * length] + piece + tail
        case _:
            return head or data[:1]


def _mutated_within(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        victim = chance.choice(names)
        for name in names:
            content = old.read(name)
            new.writestr(name, mutated(content, others, chance) if name == victim and content else content)
    return packed.getvalue()


def uploads(shared: Path, seconds: float, seed: int) -> Iterator[tuple[str, bytes]]:
    sound = seeds(shared)
    others = list(sound.values())
    chance = random.Random(seed)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        name, data = chance.choice(list(sound.items()))
        if chance.random() < 0.1:
            name = f"a{Path(chance.choice(list(sound))).suffix}"
        yield name, mutated(data, others, chance)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_mutated_files_do_no_harm(attacked: House, shared: Path, fuzz_seconds: float) -> None:
    sent = 0

    def fuzz(target: Target) -> str:
        nonlocal sent
        for name, data in uploads(shared, fuzz_seconds, seed=int(time.time())):
            answer = target.post("/v1/documents", files={"file": (name, data)})
            assert answer.status_code < 500, (name, answer.text)
            told = target.ended(answer.json()["id"], patience_s=150)
            assert "after 150 s" not in told, name
            sent += 1
        return f"{sent} files"

    row = attacked.attack(Attack("files", "fuzz", fuzz))
    assert sent > fuzz_seconds / 10
    assert row["alive"]
    assert not row["faults"]
    assert row["health_s"] < STALL_S
    assert attacked.children_left() == 0


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_schemathesis_finds_no_server_error(attacked: House, fuzz_seconds: float, tmp_path: Path) -> None:
    def fuzz(target: Target) -> str:
        ran = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{target.url}/openapi.json",
                "--header", f"Authorization: Bearer {target.key}", "--checks", "not_a_server_error",
                "--max-time", f"{fuzz_seconds:.0f}", "--request-timeout", "60", "--no-color",
            ],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
        return "nothing found"

    row = attacked.attack(Attack("requests", "schemathesis", fuzz))
    assert row["alive"]
    assert not row["faults"]
    assert row["health_s"] < STALL_S
    assert attacked.children_left() == 0
