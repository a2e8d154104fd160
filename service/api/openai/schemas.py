"""Requests of the OpenAI routes.

A parameter that is known and not supported is refused by name; one that is unknown is told and ignored (`lenient`); one
whose value changes nothing (``user``, ``metadata``) is accepted.
"""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from service.answering.prompting.layouts import ChatLayout, PlainLayout
from service.answering.question import MAX_TURNS, AnswerOptions, for_answers
from service.answering.tools.use import MOST_TOOLS, ToolUse
from service.api.openai.lenient import Lenient
from service.api.openai.tools import CallId, CallMessage, Choice, Tools, chosen, template_calls
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


class TextPart(Lenient):
    """A part of a message; images and sound are not supported."""

    type: Literal["text"]
    text: Text


class ChatMessage(Lenient):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: str | None = Field(default=None, max_length=255)
    refusal: Text | None = Field(default=None, description="Of an answer that is sent back; not read.")
    tool_calls: list[CallMessage] | None = Field(default=None, max_length=MOST_TOOLS, description="Of an assistant.")
    tool_call_id: CallId | None = Field(default=None, description="Of a tool: the call that it answers.")
    function_call: None = Field(default=None, description="Not supported; see tool_calls.")
    audio: None = Field(default=None, description="Not supported.")

    @model_validator(mode="after")
    def _calls_where_they_belong(self) -> ChatMessage:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls belong to an assistant's message")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id belongs to a tool's message, and to no other")
        return self

    def turn(self) -> dict[str, str]:
        """Role and text."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}

    def message(self, param: str) -> dict[str, Any]:
        """As chat templates take it; `param` is its place. Raises InvalidRequest for calls that cannot be read."""
        message: dict[str, Any] = self.turn()
        if isinstance(self.content, list):
            message["content"] = [part.model_dump() for part in self.content]
        if self.tool_calls:
            message["tool_calls"] = template_calls(self.tool_calls, f"{param}.tool_calls")
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class StreamOptions(Lenient):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: bool = Field(default=False, description="Usage in every chunk, as vLLM's.")


class NamedSchema(Lenient):
    """A JSON schema as OpenAI's clients send it."""

    name: str = Field(max_length=64)
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Lenient):
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
        return Constraint("json_schema", json.dumps(self.schema_of_answer()))

    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema of the output; None for text."""
        if self.type == "text":
            return None
        return self.json_schema.json_schema if self.json_schema is not None else {"type": "object"}


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


class Sampled(Lenient):
    """What chat and plain completions have in common."""

    model: str = Field(max_length=255)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="Extension, as vLLM's.")
    min_p: float | None = Field(None, ge=0, le=1, description="Extension, as vLLM's.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description="Extension, as vLLM's.")
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=1024)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="Extension, as vLLM's.")
    seed: Seed | None = None
    stop: Text | list[Text] | None = None
    stop_token_ids: list[TokenId] = Field([], max_length=64, description="Extension, as vLLM's.")
    ignore_eos: bool = Field(False, description="Extension, as vLLM's.")
    max_tokens: int | None = Field(None, ge=0, lt=2**31)
    prompt_logprobs: int | None = Field(None, ge=0, le=20, description="Extension, as vLLM's.")
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
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs is only given when stream is false")
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
        self,
        choice: int,
        max_tokens: int,
        logprobs: int | None,
        defaults: SamplingDefaults,
        scored: int | None = None,
        answering: bool = False,
    ) -> SamplingParams:
        """Sampling of one choice.

        Args:
            scored: as `SamplingParams.prompt_logprobs`.
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
            prompt_logprobs=scored,
            drafter=self.drafter if max_tokens else "none",
            attention=self.attention,
        )


class ChatRequest(Sampled):
    """Body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_TURNS)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    modalities: list[Literal["text"]] | None = None
    tools: Tools | None = None
    tool_choice: Choice | None = Field(None, description="none, auto, required, or one by name.")
    parallel_tool_calls: bool | None = None
    functions: None = Field(None, description="Not supported; see tools.")
    function_call: None = Field(None, description="Not supported; see tools.")
    audio: None = Field(None, description="Not supported.")
    web_search_options: None = Field(None, description="Not supported.")
    folio: AnswerOptions | None = Field(None, description="Extension: answer from documents, with citations.")

    @model_validator(mode="after")
    def _tools_alone(self) -> ChatRequest:
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice is only allowed when tools are given")
        if self.tools and self.structured_outputs is not None:
            raise ValueError("tools hold the output to a form of their own: leave out structured_outputs")
        if self.tools and self.folio is not None:
            raise ValueError("an answer from documents calls no tools: give tools or folio, not both")
        return self

    def use_of_tools(self, layout: ChatLayout | PlainLayout) -> ToolUse:
        """The tools that the model of this layout may call. Raises InvalidRequest."""
        tools = [tool.tool(f"tools.{at}.function.parameters") for at, tool in enumerate(self.tools or ())]
        return ToolUse(tools, chosen(self.tool_choice, self.parallel_tool_calls), layout)

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
    echo: bool = Field(False, description="The prompt before the text; with logprobs, those of its tokens too.")
    best_of: Literal[1, None] = Field(None, description="Not supported beyond 1.")
    suffix: None = Field(None, description="Not supported.")

    @property
    def scored(self) -> int | None:
        """Of how many of the likeliest tokens at each place of the prompt the log-probabilities are computed."""
        echoed = (self.logprobs or 0) if self.echo and (self.logprobs is not None or self.max_tokens == 0) else None
        return max(echoed or 0, self.prompt_logprobs or 0) if echoed is not None else self.prompt_logprobs


class EmbeddingRequest(Lenient):
    """Body of `POST /v1/embeddings`; token ids are the embedding model's own."""

    model: str = Field(max_length=255)
    input: (
        Annotated[Text, Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1, max_length=2**20)]
        | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=2048)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=2048)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, lt=2**31)
    user: str | None = Field(None, max_length=1024)
