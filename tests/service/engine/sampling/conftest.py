"""The tokenizers with chat templates of the prompts' tests."""

from tests.service.answering.prompting.conftest import made_tokenizer

__all__ = ["made_tokenizer"]
