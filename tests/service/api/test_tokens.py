"""Token by token: log-probabilities of prompts and answers, bytes, offsets, ids in and out, the ranker's scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.api.openai.token_text import Offsets, TokenTexts
from service.reader import MODEL_DIR

TEXTS = ["The naïve café — 日本語 🙂🏽 done.", " two  blanks\n\tand tabs", "½ £5 ﬁ"]


def complete(service: Any, **asked: Any) -> Any:
    body = {"model": service.runtime.model_name, "temperature": 0, **asked}
    answer = service.client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> Callable[[list[int]], torch.Tensor]:
    """transformers' log-probabilities behind each id."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()

    def of(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)

    return of


def test_echo_scores_the_prompt_as_transformers_does(service: Any, tokenizer: Any, expected: Any) -> None:
    text = "The bridge 🙂 at Hampton"
    ids = tokenizer(text).input_ids
    whole = complete(service, prompt=text, echo=True, logprobs=2, max_tokens=0)
    choice = whole["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text, "length")
    assert whole["usage"]["completion_tokens"] == 0
    found = choice["logprobs"]
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    own = [float(expected(ids)[n, token]) for n, token in enumerate(ids[1:])]
    assert found["token_logprobs"][1:] == pytest.approx(own, abs=1e-4)
    for token, top in zip(found["tokens"][1:], found["top_logprobs"][1:], strict=True):
        assert token in top
        assert len(top) in (2, 3)
    smiley = text.index("🙂")
    assert found["text_offset"][smiley : smiley + 5] == [smiley] * 4 + [smiley + 1]
    assert found["tokens"][smiley] == "bytes:\\xf0"
    same = complete(service, prompt=[ids, ids], echo=True, logprobs=2, max_tokens=1)
    for one in same["choices"]:
        assert one["logprobs"]["token_logprobs"][: len(ids)] == found["token_logprobs"]
        assert one["logprobs"]["text_offset"][len(ids)] == len(text)
        assert one["text"].startswith(text)


def test_a_stream_begins_with_the_prompt(service: Any, read_events: Any) -> None:
    asked = {"model": service.runtime.model_name, "prompt": "Hampton", "echo": True, "logprobs": 0, "max_tokens": 3}
    with service.client.stream("POST", "/v1/completions", json={**asked, "stream": True, "temperature": 0}) as answer:
        chunks = [data["choices"][0] for _, data in read_events(answer) if data]
    whole = complete(service, **asked)["choices"][0]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [one for chunk in chunks for one in chunk["logprobs"][name]] == whole["logprobs"][name]


def test_prompt_logprobs_of_both_routes(service: Any, tokenizer: Any, expected: Any) -> None:
    ids = tokenizer("Hampton").input_ids
    found = complete(service, prompt=ids, prompt_logprobs=1, max_tokens=2)["choices"][0]["prompt_logprobs"]
    assert found[0] is None
    for n, entry in enumerate(found[1:]):
        told = entry[str(ids[n + 1])]
        row = expected(ids)[n]
        assert told["logprob"] == pytest.approx(float(row[ids[n + 1]]), abs=1e-4)
        assert told["rank"] == int((row > row[ids[n + 1]]).sum()) + 1
        assert min(one["rank"] for one in entry.values()) == 1
    chat = {"model": service.runtime.model_name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    answer = service.client.post("/v1/chat/completions", json={**chat, "prompt_logprobs": 0}).json()
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    streamed = service.client.post("/v1/chat/completions", json={**chat, "prompt_logprobs": 0, "stream": True})
    assert streamed.status_code == 400


def test_no_answer_is_asked_for_without_a_reason(service: Any) -> None:
    asked = {"model": service.runtime.model_name, "prompt": "x", "max_tokens": 0}
    answer = service.client.post("/v1/completions", json=asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "max_tokens"
    echoed = complete(service, prompt="x", max_tokens=0, echo=True)["choices"][0]
    assert (echoed["text"], echoed["logprobs"]) == ("x", None)


def test_the_chosen_token_is_always_among_the_likeliest(service: Any) -> None:
    body = {
        "model": service.runtime.model_name,
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 40,
        "temperature": 2,
        "seed": 1,
        "logprobs": True,
        "top_logprobs": 2,
    }
    found = service.client.post("/v1/chat/completions", json=body).json()["choices"][0]["logprobs"]["content"]
    rare = 0
    for entry in found:
        top = {(one["token"], one["logprob"]) for one in entry["top_logprobs"]}
        assert (entry["token"], entry["logprob"]) in top
        assert len(top) in (2, 3)
        rare += len(top) == 3
    assert rare
    text = b"".join(bytes(entry["bytes"] or []) for entry in found)
    assert any(len(entry["bytes"] or []) == 1 and entry["bytes"][0] >= 0x80 for entry in found)
    answer = service.client.post("/v1/chat/completions", json={**body, "logprobs": False, "top_logprobs": None}).json()
    assert text.decode(errors="replace")[:20] == answer["choices"][0]["message"]["content"][:20]


@pytest.mark.parametrize("kind", ["reader", "sentencepiece"])
def test_bytes_are_the_texts_and_offsets_its_characters(kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR) if kind == "reader" else sentencepiece_like()
    texts = TokenTexts(tokenizer)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        told = b"".join(texts.data(token) or b"" for token in ids)
        blank = kind == "sentencepiece"
        assert told == (" " + text if blank else text).encode()
        offsets = Offsets(texts, text)
        at = [offsets.next(token) for token in ids]
        shown = text.encode()
        behind = -blank
        for token, offset in zip(ids, at, strict=True):
            assert offset == len(shown[: max(0, behind)].decode(errors="ignore"))
            behind += len(texts.data(token) or b"")


def sentencepiece_like() -> Any:
    """A tokenizer as Llama's: blanks as ▁, bytes for what it does not know."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581", *"Tthenavcfdo.wbkstlsi", "\u2581t", "th"]
    vocabulary = {piece: n for n, piece in enumerate(dict.fromkeys(["<unk>", *pieces]))}
    raw = Tokenizer(models.BPE(vocabulary, [("\u2581", "t"), ("t", "h")], byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


def test_tokens_of_one_text_do_not_collide() -> None:
    from service.api.openai.common import completion_logprobs
    from service.engine.outputs import TokenLogprobs

    texts = TokenTexts(sentencepiece_like())
    tokenizer = texts._tokenizer
    same = [tokenizer.convert_tokens_to_ids(piece) for piece in ("t", "<0x74>")]
    entry = TokenLogprobs(same[0], -1.0, 1, [(same[0], -1.0), (same[1], -2.0)])
    found = completion_logprobs(texts, [entry], Offsets(texts), 2)
    assert found["top_logprobs"] == [{"t": -1.0, f"token_id:{same[1]}": -2.0}]


def test_tokenize_and_back(service: Any, tokenizer: Any) -> None:
    post = service.client.post
    found = post("/tokenize", json={"prompt": "Grüße", "return_token_strs": True}).json()
    assert found["tokens"] == tokenizer("Grüße").input_ids
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == service.runtime.engine.window
    assert post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "Grüße"}
    messages = [{"role": "user", "content": "Hello"}]
    chat = post("/tokenize", json={"messages": messages}).json()["tokens"]
    assert chat == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    for wrong, param in [
        ({"tokens": [10**6]}, "tokens"),
        ({"tokens": "x"}, "tokens"),
        ({"tokens": [1], "model": "o"}, "model"),
    ]:
        refused = post("/detokenize", json=wrong)
        assert refused.status_code in (400, 404)
        assert refused.json()["error"]["param"] == param


def test_a_text_longer_than_any_window_is_sent_in_parts(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.openai.tokens.MOST_OF_A_TEXT", 100)
    most = service.runtime.engine.window
    refused = service.client.post("/tokenize", json={"prompt": "a " * 16 * most})
    assert refused.status_code == 400
    assert f"more than {most} tokens" in refused.json()["error"]["message"]
    assert service.client.post("/tokenize", json={"prompt": "a " * 200}).status_code == 200


def test_the_ranker_by_itself(service: Any) -> None:
    post = service.client.post
    texts = [
        "The fee is payable in May.",
        "Ada Miller built the bridge at Hampton in 1862.",
        "Limes were planted.",
    ] * 40
    query = "Who built the bridge?"
    found = post("/v1/rerank", json={"query": query, "documents": texts, "top_n": 2}).json()
    assert [result["index"] for result in found["results"]] == [1, 4]
    assert found["results"][0]["document"]["text"] == texts[1]
    assert found["results"][0]["relevance_score"] > 0.5
    assert found["usage"]["total_tokens"] > 0
    bare = {"query": query, "documents": [{"text": texts[0]}, {"text": texts[1]}], "return_documents": False}
    pair = post("/v2/rerank", json=bare).json()["results"]
    assert [set(result) for result in pair] == [{"index", "relevance_score"}] * 2
    scores = post("/v1/score", json={"text_1": query, "text_2": texts[:2]}).json()["data"]
    assert [round(one["score"], 4) for one in scores] == [
        round(one["relevance_score"], 4) for one in sorted(pair, key=lambda one: one["index"])
    ]
    for wrong, param in [
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ({"text_1": "a", "text_2": "b", "model": "other"}, "model"),
        ({"text_1": "a", "text_2": 5}, "text_2"),
    ]:
        refused = post("/v1/score", json=wrong)
        assert refused.status_code in (400, 404)
        assert refused.json()["error"]["param"] == param


def test_embeddings_of_token_ids(service: Any) -> None:
    embedder = service.runtime.library.embedder
    ids = embedder.tokens.tokenizer.encode("a bridge of stone", add_special_tokens=False).ids

    def embed(given: Any) -> Any:
        return service.client.post("/v1/embeddings", json={"model": "minilm", "input": given})

    plain = embed("a bridge of stone").json()["data"][0]["embedding"]
    assert embed(ids).json()["data"][0]["embedding"] == pytest.approx(plain, abs=1e-6)
    assert len(embed([ids, ids]).json()["data"]) == 2
    refused = embed([10**7])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "input"
    cut = service.client.post("/v1/embeddings", json={"model": "minilm", "input": "x", "dimensions": 64})
    assert (cut.status_code, cut.json()["error"]["param"]) == (400, "dimensions")


def test_json_of_log_probabilities_is_finite(service: Any) -> None:
    found = complete(service, prompt="x", logprobs=3, max_tokens=5, logit_bias={"100": 100})
    assert json.loads(json.dumps(found, allow_nan=False))
