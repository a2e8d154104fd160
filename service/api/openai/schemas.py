"""Requests of the OpenAI routes.

A parameter that is unknown, or known and not supported, is refused by name; one whose value changes nothing
(``user``, ``metadata``) is accepted.
"""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from service.answering.question import MAX_TURNS, AnswerOptions, for_answers
from service.engine.loading.sampling_defaults import SamplingDefaults
from service.engine.params import SamplingParams
from service.engine.sampling.grammars import Constraint
from service.fields import DrafterName, PolicyName, Strict, Temperature, Text, TopP

MAX_CHOICES = 16
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
TokenKey = Annotated[int, Field(ge=0, lt=2**31)]
"""A token id as a key of a JSON object, hence as text."""
Bias = Annotated[float, Field(ge=-100, le=100)]


class TextPart(Strict):
    """A part of a message; images and sound are not supported."""

    type: Literal["text"]
    text: Text


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart] | None = None
    name: str | None = Field(None, max_length=255)
    refusal: None = None
    tool_calls: None = Field(None, description="Not supported.")

    def turn(self) -> dict[str, str]:
        """Role and text, as chat templates take them."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Strict):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: Literal[False] = False


class NamedSchema(Strict):
    """A JSON schema as OpenAI's clients send it."""

    name: str = Field(max_length=64)
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """Text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _schema_with_json_schema(self) -> ResponseFormat:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema belongs to the type json_schema, and to no other")
        return self

    def constraint(self) -> Constraint | None:
        """What the output must be; None for text."""
        if self.type == "text":
            return None
        schema = self.json_schema.json_schema if self.json_schema is not None else {"type": "object"}
        return Constraint("json_schema", json.dumps(schema))


class StructuredOutputs(Strict):
    """What the output must be, one of four; as vLLM's."""

    json_schema: dict[str, Any] | bool | None = Field(None, alias="json")
    regex: Text | None = None
    choice: list[Text] | None = Field(None, min_length=1, max_length=1024)
    grammar: Text | None = Field(None, description="Lark's syntax.")

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if sum(value is not None for value in (self.json_schema, self.regex, self.choice, self.grammar)) != 1:
            raise ValueError("give one of json, regex, choice and grammar")
        return self

    def constraint(self) -> Constraint:
        if self.choice is not None:
            return Constraint.one_of(self.choice)
        if self.regex is not None:
            return Constraint("regex", self.regex)
        if self.grammar is not None:
            return Constraint("grammar", self.grammar)
        return Constraint("json_schema", json.dumps(self.json_schema))


class Sampled(Strict):
    """What chat and plain completions have in common."""

    model: str = Field(max_length=255)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="Extension, as vLLM's.")
    min_p: float | None = Field(None, ge=0, le=1, description="Extension, as vLLM's.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="Extension, as vLLM's.")
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=1024)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="Extension, as vLLM's.")
    seed: Seed | None = None
    stop: Text | list[Text] | None = None
    stop_token_ids: list[TokenId] = Field([], max_length=64, description="Extension, as vLLM's.")
    ignore_eos: bool = Field(False, description="Extension, as vLLM's.")
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    stream: bool = False
    stream_options: StreamOptions | None = None
    drafter: DrafterName | None = None
    attention: PolicyName | None = None
    # Accepted, without effect here.
    user: str | None = Field(None, max_length=1024)
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _stream_options_with_stream(self) -> Sampled:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        return self

    @model_validator(mode="after")
    def _one_format(self) -> Sampled:
        if self.structured_outputs is not None and self.response_format is not None:
            raise ValueError("give response_format or structured_outputs, not both")
        return self

    def _constraint(self) -> Constraint | None:
        wanted = self.structured_outputs or self.response_format
        return wanted.constraint() if wanted is not None else None

    def sampling(
        self, choice: int, max_tokens: int, logprobs: int | None, defaults: SamplingDefaults, answering: bool = False
    ) -> SamplingParams:
        """Sampling of one choice.

        Args:
            defaults: how the model's makers sample; where they do not say either, OpenAI's temperature of 1.
            answering: from documents, which is greedy unless the request says otherwise.

        Raises InvalidRequest naming the parameter.
        """
        seed = self.seed if self.seed is not None else secrets.randbits(62)
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        given = {
            "temperature": self.temperature,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }
        filled = defaults.fill(for_answers(given)) if answering else {"temperature": 1.0} | defaults.fill(given)
        return SamplingParams(
            max_tokens=max_tokens,
            **filled,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=tuple((self.logit_bias or {}).items()),
            constraint=self._constraint(),
            seed=(seed + choice) % 2**63,
            stop=tuple(stops),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            drafter=self.drafter,
            attention=self.attention,
        )


class ChatRequest(Sampled):
    """Body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_TURNS)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool | None = None
    folio: AnswerOptions | None = Field(None, description="Extension: answer from documents, with citations.")

    @model_validator(mode="after")
    def _top_logprobs_with_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is only allowed when logprobs is true")
        return self


class CompletionRequest(Sampled):
    """Body of `POST /v1/completions`."""

    prompt: (
        Text
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=64)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=64)]
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: Literal[1, None] = None
    echo: Literal[False, None] = None
    suffix: None = None


class EmbeddingRequest(Strict):
    """Body of `POST /v1/embeddings`."""

    model: str = Field(max_length=255)
    input: (
        Annotated[Text, Field(min_length=1)]
        | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=2048)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, lt=2**31)
    user: str | None = Field(None, max_length=1024)
