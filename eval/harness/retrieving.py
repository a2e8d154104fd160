"""The `retrieval` point: the model reads the passages found for the question, not the whole context."""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.errors import EvalError
from eval.harness.prompting import ModelInput, layout_question
from eval.tasks.example import Example
from retrieval.analysis.terms import terms
from retrieval.index.sparse import SparseIndex
from retrieval.parsing.chunking import chunk
from retrieval.types import Page
from service.answering.passages import Passage
from service.answering.prompting import Prompt, PromptLayout

PASSAGES = 8


class RetrievalPrompter:
    """BM25 over chunks of the example's context; the best `passages` go into the service's layout."""

    def __init__(self, tokenizer: Any, layout: PromptLayout, passages: int = PASSAGES) -> None:
        self.name = f"retrieval:{layout.name}"
        self.tokenizer = tokenizer
        self.layout = layout
        self.passages = passages

    def count(self, example: Example) -> int:
        """Tokens of the whole context in the layout: examples are made as long as for the other engines."""
        whole = Passage("context", "context", 0, len(example.context), None, example.context)
        return len(self.layout.build(layout_question(example), [whole]).ids)

    def build(self, example: Example, limit: int) -> ModelInput:
        """The best passages, fewer where they do not fit; the context is left to the drafters."""
        question = layout_question(example)
        found = self._search(question, example.context)
        while found:
            prompt = self.layout.build(question, found)
            if len(prompt.ids) <= limit:
                return self._input(prompt, example)
            found = found[:-1]
        raise EvalError(f"{limit} tokens leave no room for one passage", hint="Raise --length.")

    def _search(self, question: str, context: str) -> list[Passage]:
        """Passages by falling score."""
        chunks = chunk(context, [Page(1, 0, len(context))], self._token_starts)
        scores = SparseIndex.build([terms(part.text) for part in chunks]).scores(terms(question))
        best = np.argsort(-scores, kind="stable")[: self.passages]
        return [
            Passage("context", "context", chunks[i].start, chunks[i].end, None, chunks[i].text) for i in best.tolist()
        ]

    def _token_starts(self, text: str) -> np.ndarray:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return np.array([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)

    def _input(self, prompt: Prompt, example: Example) -> ModelInput:
        context = tuple(self.tokenizer.encode(example.context, add_special_tokens=False))
        return ModelInput(
            tuple(prompt.ids),
            self.tokenizer.decode(prompt.ids),
            documents=(context,),
            read=lambda ids, text: self.layout.citations(prompt, ids, text)[0],
        )
