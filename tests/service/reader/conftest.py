"""The shipped reader, loaded once."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.reader import MODEL_DIR
from service.reader.train import Packer


@pytest.fixture(scope="session")
def reader_tokenizer() -> Any:
    """The shipped tokenizer."""
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="session")
def reader_model() -> Any:
    """The shipped model in float32."""
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def packer(reader_tokenizer: Any) -> Packer:
    """The shipped tokenizer's packer."""
    return Packer(reader_tokenizer)
