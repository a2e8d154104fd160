"""Requests of Anthropic's Messages interface."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from service.answering.question import MAX_TURNS, AnswerOptions
from service.answering.tools.use import MOST_TOOLS
from service.api.openai.lenient import Lenient
from service.api.openai.schemas import Seed
from service.api.openai.tools import CallId, FunctionName
from service.fields import DrafterName, PolicyName, Temperature, Text, TopP


def _kind(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


class TextBlock(Lenient):
    """Text; what an earlier message said may be sent back as it came."""

    type: Literal["text"]
    text: Text
    citations: list[Any] | None = Field(default=None, description="Of an earlier message; not read.")


class TextSource(Lenient):
    """A document as plain text, cited by characters."""

    type: Literal["text"]
    media_type: Literal["text/plain"] = "text/plain"
    data: Text


class BlocksSource(Lenient):
    """A document in blocks of text, cited by blocks."""

    type: Literal["content"]
    content: Text | Annotated[list[TextBlock], Field(min_length=1, max_length=10_000)]


class PdfSource(Lenient):
    """A PDF, cited by pages."""

    type: Literal["base64"]
    media_type: Literal["application/pdf"]
    data: str


class Citations(Lenient):
    """Whether claims are to be cited."""

    enabled: bool = False


class DocumentBlock(Lenient):
    """A document to answer from."""

    type: Literal["document"]
    source: Annotated[
        Annotated[TextSource, Tag("text")]
        | Annotated[BlocksSource, Tag("content")]
        | Annotated[PdfSource, Tag("base64")],
        Discriminator(
            _kind,
            custom_error_type="source_type",
            custom_error_message="must be of type text, content or base64; nothing is fetched from elsewhere",
        ),
    ]
    title: Annotated[Text, Field(max_length=500)] | None = None
    context: Annotated[Text, Field(max_length=2000)] | None = None
    citations: Citations | None = None


class SearchResultBlock(Lenient):
    """A search result to answer from, cited by its blocks."""

    type: Literal["search_result"]
    source: Annotated[Text, Field(max_length=2000)]
    title: Annotated[Text, Field(max_length=500)]
    content: Annotated[list[TextBlock], Field(min_length=1, max_length=10_000)]
    citations: Citations | None = None


class ToolUseBlock(Lenient):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: CallId
    name: FunctionName
    input: dict[str, Any]


class ToolResultBlock(Lenient):
    """What a called tool gave."""

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: (
        Text
        | list[
            Annotated[
                Annotated[TextBlock, Tag("text")] | Annotated[SearchResultBlock, Tag("search_result")],
                Discriminator(
                    _kind,
                    custom_error_type="block_type",
                    custom_error_message="must be of type text or search_result; images are not supported",
                ),
            ]
        ]
        | None
    ) = None
    is_error: bool = False


UserBlock = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[DocumentBlock, Tag("document")]
    | Annotated[SearchResultBlock, Tag("search_result")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[ToolUseBlock, Tag("tool_use")],
    Discriminator(
        _kind,
        custom_error_type="block_type",
        custom_error_message="must be of type text, document, search_result, tool_use or tool_result; "
        "images are not supported",
    ),
]


class Said(Lenient):
    """A turn of the conversation."""

    role: Literal["user", "assistant"]
    content: Text | Annotated[list[UserBlock], Field(min_length=1)]

    @property
    def blocks(self) -> list[Any]:
        """The content in blocks."""
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else list(self.content)


class AnthropicTool(Lenient):
    """A tool that the model may call."""

    type: Literal["custom"] | None = None
    name: FunctionName
    description: Text | None = None
    input_schema: dict[str, Any]


class AnthropicChoice(Lenient):
    """Which tools may be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool = False


class SchemaFormat(Lenient):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Lenient):
    """What the output must be."""

    format: SchemaFormat | None = None
    effort: None = Field(None, description="Not supported.")


class NoThinking(Lenient):
    """No model here thinks apart."""

    type: Literal["disabled"]


class Counted(Lenient):
    """What a conversation is made of: the body of `POST /v1/messages/count_tokens`."""

    model: str = Field(max_length=255)
    messages: list[Said] = Field(min_length=1, max_length=MAX_TURNS)
    system: Text | list[TextBlock] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: NoThinking | None = None
    output_config: OutputConfig | None = None


class MessageRequest(Counted):
    """Body of `POST /v1/messages`."""

    max_tokens: int = Field(ge=1, lt=2**31)
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: int | None = Field(None, ge=0, lt=2**31)
    stop_sequences: Annotated[list[Text], Field(max_length=16)] | None = None
    stream: bool = False
    seed: Seed | None = Field(None, description="Extension.")
    drafter: DrafterName | None = None
    attention: PolicyName | None = None
    folio: AnswerOptions | None = Field(None, description="Extension: answer from the library, with citations.")
    container: None = Field(None, description="Not supported.")
    mcp_servers: None = Field(None, description="Not supported.")
    context_management: None = Field(None, description="Not supported.")
    # Accepted, without effect here.
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
