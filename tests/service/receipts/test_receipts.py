"""Receipts: an answer comes out again token by token, what was altered is named, and nobody else's text is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.receipts.receipt import Receipt, ReceiptBody, signed_bytes
from service.receipts.signing import is_signed

from ..api.conftest import make_engine, start_service  # noqa: F401

BOOK = "The bridge at Hampton was built by Ada Miller in 1862. It has seven arches of grey stone.\n"
TREES = "The oldest oak stands behind the church. Its trunk measures nine metres around.\n"
ASK = {"question": "Who built the bridge at Hampton?", "receipt": True, "max_tokens": 12}


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Any]) -> Any:  # noqa: F811
    """A service with the tiny model, which writes nonsense that depends on every bit."""
    service = start_service()
    service.ingest("bridge.txt", BOOK.encode())
    service.ingest("trees.txt", TREES.encode())
    return service


@pytest.fixture(scope="module")
def quoting(start_service: Callable[..., Any], make_scripted: Any) -> Any:  # noqa: F811
    """A service whose engine quotes the first sentence it is given."""
    return start_service(engine=make_scripted())


def ask(service: Any, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    answer = service.client.post("/v1/answer", json={**ASK, **more}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["receipt"]


def verify(service: Any, receipt: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
    answer = service.client.post("/v1/receipts/verify", json=receipt, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def signed(service: Any, receipt: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The receipt as the installation would have signed it with other words."""
    body = ReceiptBody(**{name: (receipt | changes)[name] for name in ReceiptBody.model_fields})
    return service.runtime.receipts.signed(body).model_dump(mode="json")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"mode": "retrieval"},
        {"temperature": 0.9, "seed": 7},
        {"history": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]},
        {"drafter": "none", "attention": "dense"},
    ],
)
def test_an_answer_comes_out_again_token_by_token(service: Any, how: dict[str, Any]) -> None:
    receipt = ask(service, **how)
    assert len(receipt["token_ids"]) == 12
    verdict = verify(service, receipt)
    assert verdict["says"] == "Genuine; all 12 tokens are equal; passages and citations still stand in the documents."
    assert (verdict["ok"], verdict["current"]) == (True, True)
    assert (verdict["tokens"], verdict["text"]) == ("equal", "equal")
    assert verdict["differs"] == ["batch_invariant"], "not the prompt, which a small model may not care about"


def test_bits_are_promised_where_they_depend_on_nothing(
    start_service: Callable[..., Any],  # noqa: F811
    service: Any,
) -> None:
    """As docs/drafting.md has it: in float32 with batch_invariant, or for a short prompt."""
    long = verify(service, ask(service))
    assert (long["guarantee"], long["differs"]) == ("text", ["batch_invariant"])
    receipt = ask(service)
    assert receipt["prompt_tokens"] > 256
    short = verify(service, signed(service, receipt, prompt_tokens=256))
    assert (short["guarantee"], short["differs"]) == ("exact", [])
    invariant = invariant_service(start_service, service)
    verdict = verify(invariant, ask(invariant))
    assert (verdict["guarantee"], verdict["tokens"]) == ("exact", "equal")


def invariant_service(start_service: Callable[..., Any], service: Any) -> Any:  # noqa: F811
    """One whose bits do not depend on what runs beside."""
    loaded = service.runtime.engine.engine.loaded
    made = start_service(engine=Engine(loaded, EngineConfig(kv_memory=64 << 20, batch_invariant=True)))
    made.ingest("bridge.txt", BOOK.encode())
    return made


def test_a_receipt_can_be_checked_without_the_service(service: Any) -> None:
    receipt = Receipt(**ask(service))
    assert is_signed(signed_bytes(receipt.digests_signed), receipt.signature, receipt.key)
    assert receipt.altered() == []


ALTERED = {
    "prompt_tokens": 1,
    "instructions": "Answer in verse.",
    "question": "Who burnt the bridge at Hampton?",
    "answer": "Nobody.",
    "token_ids": [1, 2, 3],
    "mode": "retrieval",
    "generation": 99,
    "refused": True,
    "made_at": "1862-01-01T00:00:00+00:00",
    "passages": [],
    "history": [{"role": "user", "content": "Hello."}],
    "likely": ["It fell."],
    "prompt": "0" * 64,
    "finish_reason": "stop it",
    "citations": [
        {"document": "d", "file": "", "start": 0, "end": 1, "sha256": "0" * 64, "claim": 0, "support": "verbatim"}
    ],
}


@pytest.mark.parametrize("field", ALTERED)
def test_what_was_altered_is_named(service: Any, field: str) -> None:
    verdict = verify(service, ask(service) | {field: ALTERED[field]})
    assert verdict["says"] == f"Altered after it was signed: {field}."
    assert (verdict["ok"], verdict["seal"], verdict["altered"], verdict["tokens"]) == (
        False,
        "altered",
        [field],
        "not compared",
    )


def test_a_part_of_a_field_counts_too(service: Any) -> None:
    receipt = ask(service)
    receipt["sampling"]["seed"] += 1
    receipt["maker"]["name"] = "another"
    assert verify(service, receipt)["altered"] == ["maker", "sampling"]


def test_digests_that_were_altered_with_the_field_break_the_signature(service: Any) -> None:
    receipt = ask(service) | {"answer": "Nobody."}
    receipt["digests_signed"] = ReceiptBody(**{name: receipt[name] for name in ReceiptBody.model_fields}).digests()
    verdict = verify(service, receipt)
    assert (verdict["seal"], verdict["altered"]) == ("altered", [])
    assert verdict["says"].startswith("The signature is not that of the key")


def test_a_receipt_of_another_installation_says_so(service: Any) -> None:
    receipt = ask(service)
    key = Ed25519PrivateKey.generate()
    receipt["key"] = key.public_key().public_bytes_raw().hex()
    receipt["signature"] = key.sign(signed_bytes(receipt["digests_signed"])).hex()
    verdict = verify(service, receipt)
    assert (verdict["ok"], verdict["seal"]) == (False, "foreign")
    assert verdict["says"].startswith("Another installation signed this receipt")


def test_an_answer_that_differs_says_from_which_token_on(service: Any) -> None:
    receipt = ask(service)
    ids = list(receipt["token_ids"])
    ids[4] += 1
    verdict = verify(service, signed(service, receipt, token_ids=ids, answer="Otherwise."))
    assert not verdict["ok"]
    assert verdict["says"].startswith("Genuine, but the answer differs from token 5 of 12 on ")


def test_a_model_that_is_gone_is_named(service: Any) -> None:
    receipt = ask(service)
    maker = receipt["maker"] | {"name": "old-7b", "fingerprint": "another"}
    verdict = verify(service, signed(service, receipt, maker=maker))
    assert not verdict["ok"]
    assert verdict["says"].startswith("Made with the model old-7b, and ")
    assert verdict["passages"] == ["stored", "stored"]


def test_other_kernels_promise_the_text_alone(service: Any) -> None:
    receipt = ask(service)
    verdict = verify(service, signed(service, receipt, maker=receipt["maker"] | {"kernels": "avx2 0"}))
    assert (verdict["ok"], verdict["guarantee"], verdict["differs"]) == (True, "text", ["kernels"])
    assert verify(service, signed(service, receipt, maker=receipt["maker"] | {"dtype": "bfloat16"}))["differs"] == [
        "dtype"
    ]


def test_words_that_read_otherwise_now_are_not_those_of_the_receipt(service: Any) -> None:
    """Though they stand in the same place of the same file."""
    receipt = ask(service)
    passages = [one | {"sha256": "0" * 64} for one in receipt["passages"]]
    verdict = verify(service, signed(service, receipt, passages=passages))
    assert verdict["passages"] == ["gone"] * len(passages)
    assert verdict["says"].startswith("The answer cannot be made again; ")


def test_a_document_that_changed_or_went_is_named_and_not_shown(quoting: Any) -> None:
    document = quoting.ingest("bridge.txt", BOOK.encode())["id"]
    receipt = ask(quoting, max_tokens=200, documents=[document])
    assert [one["support"] for one in receipt["citations"]] == ["verbatim"]
    assert "Ada Miller" not in json.dumps(receipt["passages"] + receipt["citations"])
    quoting.ingest("bridge.txt", BOOK.replace("Ada", "Eve").encode())
    changed = verify(quoting, receipt)
    assert (changed["ok"], changed["current"], changed["citations"]) == (True, False, ["changed"])
    assert changed["says"].endswith(f"tokens are equal; document {document} is changed since.")
    assert quoting.client.delete(f"/v1/documents/{document}").status_code == 204
    gone = verify(quoting, receipt)
    assert (gone["ok"], gone["passages"], gone["citations"]) == (False, ["gone"], ["gone"])
    assert gone["says"] == f"The answer cannot be made again; document {document} is no longer here."
    assert "Miller" not in json.dumps(gone)


def test_another_owner_sees_what_he_would_see_of_a_deleted_document(start_service: Callable[..., Any]) -> None:  # noqa: F811
    service = start_service()
    keys = service.runtime.keys
    mine, theirs = ({"Authorization": f"Bearer {keys.create(name)[1]}"} for name in ("zoe@home", "bob"))
    document = service.ingest("bridge.txt", BOOK.encode(), **mine)["id"]
    receipt = ask(service, mine)
    assert verify(service, receipt, mine)["ok"]
    before = verify(service, receipt, theirs)
    assert service.client.delete(f"/v1/documents/{document}", headers=mine).status_code == 204
    assert verify(service, receipt, theirs) == before
    assert before["says"] == f"The answer cannot be made again; document {document} is no longer here."
    assert "zoe" not in json.dumps(receipt), "nor does it name its owner"


def test_a_stream_brings_it_before_the_end(service: Any, read_events: Any) -> None:
    with service.client.stream("POST", "/v1/answer", json={**ASK, "stream": True}) as response:
        names = [name for name, _ in read_events(response)]
    assert names[-2:] == ["receipt", "done"]


def test_no_receipt_of_what_searches_while_it_writes(service: Any) -> None:
    answer = service.client.post("/v1/answer", json={**ASK, "mode": "iterative"})
    assert answer.status_code == 400
    assert answer.json()["param"] == "receipt"


def test_a_receipt_of_another_version_is_refused(service: Any) -> None:
    answer = service.client.post("/v1/receipts/verify", json=ask(service) | {"format": "folio-receipt-9"})
    assert answer.status_code in (400, 422)
    assert "folio-receipt-1" in answer.text


def test_the_command_line_writes_and_verifies(
    folio: Callable[..., Any], home: Path, tmp_path: Path, scripted_commands: Callable[..., None]
) -> None:
    scripted_commands()
    path = tmp_path / "r.json"
    code, _, said = folio("--home", home, "ask", "Who built the bridge at Hampton?", "--receipt", path)
    assert code == 0, said
    code, out, said = folio("--home", home, "verify", path)
    assert (code, out.startswith("Genuine; all ")) == (0, True), said
    receipt = json.loads(path.read_text())
    path.write_text(json.dumps(receipt | {"answer": "Nobody."}))
    code, out, _ = folio("--home", home, "verify", path)
    assert (code, out) == (1, "Altered after it was signed: answer.\n")
    path.write_text("{}")
    code, _, said = folio("--home", home, "verify", path)
    assert code == 2
    assert "is no receipt that this version reads" in said


@pytest.fixture(scope="module")
def read_events() -> Callable[[Any], list[tuple[str, Any]]]:
    def read(response: Any) -> list[tuple[str, Any]]:
        return [(line[7:], None) for line in response.iter_lines() if line.startswith("event: ")]

    return read


def forgeries(service: Any, receipt: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """The receipt tampered with in ever another way, and how the verdict on each begins."""
    ids, key = receipt["token_ids"], Ed25519PrivateKey.generate()
    foreign = {
        "key": key.public_key().public_bytes_raw().hex(),
        "signature": key.sign(signed_bytes(receipt["digests_signed"])).hex(),
    }
    old = receipt["maker"] | {"fingerprint": "another", "name": "old"}
    ways = [({field: value}, f"Altered after it was signed: {field}.") for field, value in ALTERED.items()]
    for name in ("maker", "sampling"):
        parts = receipt[name]
        changed = [parts | {part: _other(value)} for part, value in parts.items()]
        ways += [({name: one}, f"Altered after it was signed: {name}.") for one in changed]
    digests = receipt["digests_signed"] | {"answer": "0" * 64}
    ways += [
        ({"signature": "0" * 128}, "The signature is not that of the key"),
        ({"digests_signed": digests}, "Altered after it was signed: answer."),
        (foreign, "Another installation signed this receipt"),
        (signed(service, receipt, maker=old), "Made with the model old, and "),
        (
            signed(service, receipt, token_ids=[*ids[:-1], ids[-1] ^ 1], answer="Nobody."),
            f"Genuine, but the answer differs from token {len(ids)} of {len(ids)} on",
        ),
    ]
    return [(receipt | change, says) for change, says in ways]


def _other(value: Any) -> Any:
    """Another value that the field may have."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return value | {"torch": "1.0"}
    return value + 1 if isinstance(value, int | float) else f"{value}x"


@pytest.mark.slow
def test_two_hundred_receipts(start_service: Callable[..., Any], service: Any) -> None:  # noqa: F811
    """200 answers come out again, each beside others; 40 that were tampered with, each in another way, do not."""
    service = invariant_service(start_service, service)
    with ThreadPoolExecutor(8) as clients:
        receipts = list(
            clients.map(
                lambda seed: ask(service, seed=seed, temperature=seed % 3 / 2, question=f"What of number {seed}?"),
                range(200),
            )
        )
        verdicts = list(clients.map(lambda receipt: verify(service, receipt), receipts))
    assert len({tuple(receipt["token_ids"]) for receipt in receipts}) > 100, "different answers"
    for receipt, verdict in zip(receipts, verdicts, strict=True):
        assert verdict["says"].startswith(f"Genuine; all {len(receipt['token_ids'])} tokens are equal; passages and ")
        assert (verdict["ok"], verdict["guarantee"]) == (True, "exact")
    forged = [forgeries(service, receipt)[way] for way, receipt in enumerate(receipts[:40])]
    for one, says in forged:
        verdict = verify(service, one)
        assert not verdict["ok"]
        assert verdict["says"].startswith(says)
