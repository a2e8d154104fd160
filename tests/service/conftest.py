"""A tiny random model with a real tokenizer and chat template, and homes with documents in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

BOOK = (
    "The bridge at Hampton was built by Ada Miller in 1862. It has seven arches of grey stone.\n\n"
    "The mill beside it belonged to the parish. A flood took the mill in 1871, and it was not rebuilt.\n\n"
    "Visitors may cross the bridge on foot. Carts must use the ford, which is two hundred yards upstream.\n"
)
TREES = (
    "# Trees of the valley\n\nThe oldest oak stands behind the church. Its trunk measures nine metres around.\n\n"
    "Limes were planted along the road in 1903. The elm has died out.\n"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer random Llama with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test."""
    for name in [name for name in os.environ if name.startswith("FOLIO_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two small documents."""
    book, trees = tmp_path / "bridge.txt", tmp_path / "trees.md"
    book.write_bytes(BOOK.encode())
    trees.write_bytes(TREES.encode())
    return [book, trees]


@pytest.fixture
def home(tmp_path: Path, files: list[Path]) -> Path:
    """A data folder with the two documents."""
    from retrieval.library import Library

    folder = tmp_path / "home"
    with Library.open(folder) as library:
        library.ingest(files)
    return folder


@pytest.fixture
def folio(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: `folio(home, "ls", …)` gives exit code, stdout and stderr."""
    from service.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return int(code), said.out, said.err

    return run
