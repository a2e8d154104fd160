"""`POST /tokenize` and `/detokenize`, as vLLM's: text to the model's token ids and back."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field, model_validator

from service.answering.question import MAX_TURNS
from service.api.auth import Reader
from service.api.errors import openai_problems
from service.api.health import Parts
from service.api.openai.common import check_model, encoded
from service.api.openai.lenient import Lenient, tell_unknown
from service.api.openai.schemas import ChatMessage, TokenId
from service.api.openai.token_text import token_texts
from service.errors import InvalidRequest, PromptTooLong
from service.fields import Text

router = APIRouter(tags=["openai"])

MOST_TOKENS = 2**20
"""that are made text at once"""
MOST_OF_A_TEXT = 2**15
"""tokens that a text may have, or as many as the model's window: what is longer keeps a core from others' answers"""


class TokenizeRequest(Lenient):
    """A prompt, or a conversation as the model's template writes it."""

    model: str | None = Field(None, max_length=255)
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_TURNS)] | None = None
    add_special_tokens: bool | None = Field(None, description="Of a prompt; null: as the tokenizer does.")
    add_generation_prompt: Literal[True] = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages")
        if self.messages is not None and self.add_special_tokens:
            raise ValueError("add_special_tokens belongs to prompt: a template writes its own")
        return self


class DetokenizeRequest(Lenient):
    """Token ids of the model."""

    model: str | None = Field(None, max_length=255)
    tokens: list[TokenId] = Field(max_length=MOST_TOKENS)


@router.post("/tokenize", responses=openai_problems(404))
async def tokenize(body: TokenizeRequest, request: Request, runtime: Parts, principal: Reader) -> dict[str, Any]:
    """The ids of a text."""
    tell_unknown(request, body)
    if body.model is not None:
        check_model(runtime, body.model)
    encoder = runtime.chat.encoder

    def ids() -> list[int]:
        if body.messages is not None:
            return list(runtime.chat.chat_ids([message.turn() for message in body.messages]))
        text = body.prompt or ""
        return encoder.template(text) if body.add_special_tokens is False else encoder.plain(text)

    def both() -> tuple[list[int], list[str] | None]:
        found = ids()
        texts = token_texts(runtime.tokenizer)
        return found, [texts.text(token) for token in found] if body.return_token_strs else None

    said = [message.turn()["content"] for message in body.messages or []] or [body.prompt or ""]
    most = max(MOST_OF_A_TEXT, runtime.engine.window)
    try:
        found, strings = await encoded(runtime, principal.owner, said, both, most=most)
    except PromptTooLong as error:
        raise InvalidRequest(
            f"The text has more than {most} tokens.", hint="Send it in parts.", param="prompt"
        ) from error
    return {"count": len(found), "max_model_len": runtime.engine.window, "tokens": found, "token_strs": strings}


@router.post("/detokenize", responses=openai_problems(404))
async def detokenize(body: DetokenizeRequest, request: Request, runtime: Parts, principal: Reader) -> dict[str, Any]:
    """The text of ids, tokens of control included."""
    tell_unknown(request, body)
    if body.model is not None:
        check_model(runtime, body.model)
    most = runtime.engine.engine.vocab_size
    if any(token >= most for token in body.tokens):
        raise InvalidRequest(f"The model knows token ids 0 to {most - 1}.", param="tokens")
    decode = partial(runtime.chat.encoder.decoded, body.tokens, special=True)
    return {"prompt": await runtime.encoding.run(principal.owner, decode)}
