"""The shipped reader, loaded once."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from eval.reader.initialise import build
from eval.reader.packing import Packer
from service.reader import MODEL_DIR


@pytest.fixture(scope="session")
def reader_model() -> Any:
    """The shipped model in float32."""
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def packer(reader_tokenizer: Any) -> Packer:
    """The shipped tokenizer's packer."""
    return Packer(reader_tokenizer)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """A small context."""
    return [
        "The harbour of Lisbon was rebuilt after the great earthquake.",
        "A young engineer measured the temperature of the boiler twice.",
        "Cotton and silver were traded for horses near the old bridge.",
        "The museum keeps seven portraits of the forgotten emperor.",
    ]


@pytest.fixture(scope="session")
def untrained(reader_tokenizer: Any, sentences: list[str]) -> Any:
    """A model as initialised; tests that train it take a copy."""
    return build(reader_tokenizer, sentences, seed=3)
