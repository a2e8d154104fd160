"""Kinds of fields that several requests share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from retrieval.knn.decoding import KnnOptions
from service.answering.evidence import IterativeOptions


def _encodable(text: str) -> str:
    """Refuse lone surrogates, which JSON can carry and no encoding, tokenizer or database takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a surrogate pair, which is no character") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]
DocumentId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
CollectionName = Annotated[Text, Field(min_length=1, max_length=255)]


class Iterative(BaseModel):
    """How mode iterative works; other modes ignore it."""

    model_config = ConfigDict(extra="forbid")

    speculate: bool = Field(
        default=True, description="Guess what a search will find, verify later; the answer is the same."
    )
    k: int = Field(default=4, ge=1, le=1024, description="Tokens between searches.")
    stride: int | None = Field(
        default=None, ge=1, le=64, description="Strides of k tokens to one search, the last not guessed; null: as pays."
    )
    query_tokens: int = Field(default=32, ge=1, le=8192, description="Last tokens that a search is asked with.")
    retriever: Literal["hybrid", "dense", "sparse"] = "hybrid"
    prefetch: int = Field(
        default=16, ge=1, le=1000, description="Passages that a search brings into the cache of guesses."
    )
    overlap: bool | None = Field(
        default=None, description="Write on while guesses are verified; null: where the model is on a GPU."
    )

    def options(self) -> IterativeOptions:
        """The same for the service."""
        return IterativeOptions(**self.model_dump())


class Knn(BaseModel):
    """How the model decodes with the datastore of the documents."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    k: int = Field(64, ge=1, le=4096, description="Neighbours of a token.")
    weight: float = Field(0.25, ge=0, le=1, description="Share of the neighbours in the mixture (lambda).")
    temperature: float = Field(100.0, gt=0, description="Of the neighbours' distances.")
    probes: int | None = Field(None, ge=1, description="Lists of the datastore looked at; null: every entry.")
    speculate: bool = Field(True, description="Guess tokens and look them up in batches; the answer is the same.")
    stride: int | None = Field(None, ge=1, le=64, description="Guesses to one look-up; null: as pays best.")

    def options(self) -> KnnOptions:
        """The same for the service."""
        return KnnOptions(**self.model_dump())
