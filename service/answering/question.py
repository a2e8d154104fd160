"""A question: what is asked, of which documents, and how the answer is made.

Limits, defaults and descriptions stand here once: REST takes them as its body, the OpenAI routes as their field
`folio`, the command line as flags. Nothing here needs a model, so that a question can be refused before one is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PrivateAttr

from service.errors import InvalidRequest, NotFound
from service.fields import CollectionName, DocumentId, DrafterName, PolicyName, Strict, Temperature, Text, TopP

if TYPE_CHECKING:
    from retrieval.store.shelf import Shelf
    from retrieval.types import Document
    from service.engine.loading.sampling_defaults import SamplingDefaults
    from service.engine.params import SamplingParams

MAX_TURNS = 1000
MAX_INSTRUCTIONS = 20_000
MAX_HISTORY_BYTES = 512 * 1024
"""Of all earlier turns together, in UTF-8: about 130,000 tokens."""

Mode = Literal["auto", "long", "retrieval", "iterative", "flare", "iter-retgen"]
STEPWISE = ("iterative", "flare", "iter-retgen")
"""modes that search while the answer is written"""


class Frozen(Strict):
    """Values that are compared, and that nobody changes."""

    model_config = ConfigDict(frozen=True)


class Iterative(Frozen):
    """How modes iterative, flare and iter-retgen work; other modes ignore it."""

    speculate: bool = Field(
        default=True, description="Guess what a search will find, verify later; the answer is the same."
    )
    k: int = Field(default=4, ge=1, le=1024, description="Mode iterative: tokens between searches.")
    theta: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Mode flare: search before sentences with a token less probable than this.",
    )
    beta: float = Field(
        default=0.4, ge=0, le=1, description="Mode flare: tokens less probable than this are left out of the search."
    )
    iterations: int = Field(default=3, ge=1, le=16, description="Mode iter-retgen: answers written at most.")
    stride: int | None = Field(
        default=None, ge=1, le=64, description="Strides to one search, the last not guessed; null: as pays."
    )
    query_tokens: int | None = Field(
        default=None,
        ge=1,
        le=8192,
        description="Last tokens that a search is asked with; null: 32, in mode flare 64, in mode iter-retgen 192.",
    )
    retriever: Literal["hybrid", "dense", "sparse"] = Field(default="hybrid", description="What searches.")
    prefetch: int = Field(
        default=16, ge=1, le=1000, description="Passages that a search brings into the cache of guesses."
    )
    overlap: bool | None = Field(
        default=None, description="Write on while guesses are verified; null: where the model is on a GPU."
    )


class Knn(Frozen):
    """How the model decodes with the datastore of the documents."""

    k: int = Field(default=64, ge=1, le=4096, description="Neighbours of a token.")
    weight: float = Field(default=0.25, ge=0, le=1, description="Share of the neighbours in the mixture (lambda).")
    temperature: float = Field(default=100.0, gt=0, description="Of the neighbours' distances.")
    probes: int | None = Field(default=None, ge=1, description="Lists of the datastore looked at; null: every entry.")
    speculate: bool = Field(
        default=True, description="Guess tokens and look them up in batches; the answer is the same."
    )
    stride: int | None = Field(default=None, ge=1, le=64, description="Guesses to one look-up; null: as pays best.")


class Turn(Frozen):
    """An earlier turn of the conversation."""

    role: Literal["user", "assistant"]
    content: Text


def _bounded(history: tuple[Turn, ...]) -> tuple[Turn, ...]:
    size = sum(len(turn.content.encode()) for turn in history)
    if size > MAX_HISTORY_BYTES:
        raise ValueError(f"the turns hold {size:,} bytes, over {MAX_HISTORY_BYTES:,}; leave out the oldest")
    return history


History = Annotated[
    tuple[Turn, ...],
    AfterValidator(_bounded),
    Field(max_length=MAX_TURNS, description="Earlier turns, the oldest first."),
]


def newest(turns: Sequence[Turn]) -> list[Turn]:
    """The newest of the turns that a question may bring, from a question on."""
    kept = list(turns[-MAX_TURNS:])
    while kept and (kept[0].role != "user" or sum(len(turn.content.encode()) for turn in kept) > MAX_HISTORY_BYTES):
        del kept[0]
    return kept


class AnswerOptions(Frozen):
    """Which documents a question is about, and how the answer is made of them."""

    mode: Mode = Field(
        default="auto",
        description="long: read whole; retrieval: passages; auto chooses of these two; iterative, flare, iter-retgen: "
        "search while the answer is written.",
    )
    documents: tuple[DocumentId, ...] = Field(
        default=(), max_length=100, description="Ids; none for the whole collection."
    )
    collection: CollectionName | None = Field(default=None, description="Name of a collection; null for all documents.")
    passages: int | None = Field(default=None, ge=1, le=100, description="Passages to retrieve.")
    rerank: bool = Field(
        default=False, description="Let the ranker read what a search finds, and take the passages that answer best."
    )
    refuse_below: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Mode retrieval: say that the documents do not answer where, by the ranker, no sentence found does "
        "with this probability; 0 asks the model always; null: the ranker's own bound, where it reads the language.",
    )
    iterative: Iterative = Field(default=Iterative(), description="How modes that search under way work.")
    knn: Knn | None = Field(default=None, description="Decode with the kNN datastore of the documents; null: without.")


class Question(AnswerOptions):
    """A question and how to answer it."""

    text: Text = Field(alias="question", min_length=1, max_length=20_000, description="What is asked.")
    history: History = ()
    instructions: Text = Field(
        default="",
        max_length=MAX_INSTRUCTIONS,
        description="How the answer is to be given (language, tone, form), for a model that writes its own words.",
    )
    _query: str | None = PrivateAttr(None)

    @property
    def query(self) -> str:
        """What is searched for: the question, or what `service.answering.conversation.turns` made of it."""
        return self.text if self._query is None else self._query

    @property
    def turns(self) -> list[dict[str, str]]:
        """The history as prompts are built of it."""
        return [turn.model_dump() for turn in self.history]

    def searched_as(self, query: str) -> Self:
        """The same question, for which something else is searched for."""
        copy = self.model_copy()
        copy._query = query
        return copy

    def check(self, library: Shelf, owner: str) -> list[Document]:
        """The documents that it names. All that can be refused without a model is refused here.

        Raises:
            InvalidRequest: it is empty or contradicts itself, or a document cannot be read.
            NotFound (retrieval's or ours): the owner has no such document or collection.
        """
        if not self.text.strip():
            raise InvalidRequest("The question is empty.", param="question")
        if self.knn is not None and self.mode in STEPWISE:
            raise InvalidRequest(f"Mode {self.mode} does not decode with a kNN datastore.", param="knn")
        named = [library.document(one, owner) for one in dict.fromkeys(self.documents)]
        for document in named:
            if not document.readable:
                raise InvalidRequest(f"{document.name} cannot be read: {document.error}", param="documents")
        if self.collection is not None and not library.documents(self.collection, owner, limit=1):
            known = {collection.name for collection in library.collections(owner)}
            if self.collection not in known:  # rather than empty
                raise NotFound(f"There is no collection {self.collection[:100]!r}.")
        return named


class Sampling(Strict):
    """How the tokens of an answer are chosen; the OpenAI routes have options of their own."""

    max_tokens: Annotated[int, Field(ge=1, le=65536, description="Longest answer, in tokens.")] | None = None
    temperature: Temperature = 0.0
    top_p: TopP | None = Field(
        default=None, description="Keep the likeliest tokens that reach this; null: the model's."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="The same seed gives the same answer.")
    drafter: DrafterName | None = None
    attention: PolicyName | None = None

    def params(self, answer_tokens: int, defaults: SamplingDefaults) -> SamplingParams:
        """The same for the engine; `answer_tokens` where no limit is named, `defaults` of the model's makers."""
        from service.engine.params import SamplingParams  # brings torch, which a refusal must not wait for

        return SamplingParams(
            max_tokens=self.max_tokens or answer_tokens,
            **defaults.fill(for_answers({"temperature": self.temperature, "top_p": self.top_p})),
            seed=self.seed,
            drafter=self.drafter,
            attention=self.attention,
        )


def nothing_to_steer(param: str) -> InvalidRequest:
    """The refusal of what acts on every word, for a model that quotes what was chosen before it speaks.

    param: mode or knn.
    """
    return InvalidRequest(
        "The embedded reader quotes sentences that are chosen before it speaks: modes that search while the answer is "
        "written, and kNN datastores, act on every word that a model writes, and have nothing to do there.",
        hint="Use mode retrieval, or name a model that writes its own words, for example FOLIO_MODEL=smollm2.",
        param=param,
    )


def nothing_to_instruct(param: str) -> InvalidRequest:
    """The refusal of instructions, for a model that says what documents say. param: where they were given."""
    return InvalidRequest(
        "The embedded reader answers in the words of the documents and follows no instructions, such as a system "
        "message.",
        hint="Leave them out, or name a model that writes its own words, for example FOLIO_MODEL=smollm2.",
        param=param,
    )


def for_answers(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a request gives of sampling, for an answer from documents: greedy, and no penalty, unless it says otherwise.

    The question has an answer that stands somewhere: chance only takes away from it. And a penalty for repetition falls
    on the words of the documents, which the answer is to repeat.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    return {"temperature": 0.0, "repetition_penalty": 1.0, **asked}
