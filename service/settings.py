"""The settings of Folio, in one place.

A value comes from, in this order: a flag of the command line, the environment (``FOLIO_PORT``), a TOML file
(``FOLIO_CONFIG``, or ``folio.toml`` in the data folder), the default below. An unknown key in the file is an
error.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from service.engine.config import Bytes, EngineConfig, first_problem
from service.errors import InvalidRequest

EMBEDDED = "embedded"
"""The model that ships with the package."""

FollowUps = Literal["rule", "model"]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FILE_NAME = "folio.toml"


class _TomlFile(TomlConfigSettingsSource):
    """TOML that may begin with a byte order mark, as editors on Windows write it."""

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        return tomllib.loads(file_path.read_text("utf-8-sig"))


class Settings(BaseSettings, EngineConfig):
    """Every setting, its meaning and its default; those of the engine are `EngineConfig`'s own.

    Made by `load_settings`, so that errors read well.
    """

    model_config = SettingsConfigDict(env_prefix="FOLIO_", extra="forbid", frozen=True, validate_default=True)

    # Data
    home: Path = Field(Path("~/.folio"), description="Data folder: database, index generations, models' KV.")
    database_url: str = Field(
        "",
        description="SQLAlchemy URL, as postgresql+psycopg://…; empty for SQLite in the data folder.",
    )
    blobs: str = Field(
        "",
        description="Store of files, uploads and index generations for several machines, as s3://bucket/folio; "
        "empty for the data folder.",
    )
    embedder: str = Field(
        "minilm",
        description="Embedding model: minilm (packaged), multilingual-e5-small (an extra), a folder, or a hub id.",
    )
    reranker: str = Field(
        "",
        description="What ranks sentences and passages: minilm (packaged), cosine (the embedding model), or a "
        "cross-encoder by folder or hub id; empty for what suits the embedding model.",
    )

    search_device: Literal["cpu", "cuda"] = Field(
        "cpu", description="Where FAISS searches: cpu, or cuda for a read-only copy on a GPU (needs faiss-gpu)."
    )

    # Model
    model: str = Field(EMBEDDED, description="embedded, smollm2, a GGUF file, a folder with a checkpoint, or a hub id.")

    # Answering
    answer_tokens: int = Field(
        256,
        ge=1,
        le=65536,
        description="Longest answer, in tokens, where a request names none; of the embedded reader, which quotes whole "
        "sentences, 1,024 at least.",
    )
    passages: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Passages retrieved for an answer; default: as were best for models of the size.",
    )
    warm_passages: Bytes = Field(
        0,
        description="Disk for the KV of passages that are read while documents are indexed, for the policy blend, as "
        "20GiB; 0 for none.",
    )
    follow_ups: FollowUps = Field(
        "rule", description="What makes a follow-up stand alone for the search: rule, or the chat model itself."
    )

    # Service
    host: str = Field("127.0.0.1", description="Address to listen on; another than loopback needs an API key.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 for any free one.")
    api_key: SecretStr | None = Field(None, description="One key with all scopes, besides those of `folio keys`.")
    cors_origins: str = Field(
        "",
        description="Sites whose pages may use the API, as https://a.example,https://b.example; empty for none.",
    )
    max_upload_mb: float = Field(256, gt=0, description="Largest upload, in MiB.")
    max_connections: int = Field(1024, ge=1, description="Connections at once; those that wait give way to new ones.")
    max_body_mb: float = Field(16, gt=0, description="Largest JSON body, in MiB.")
    long_tokens: int | None = Field(
        None, ge=16, description="Longest prompt that mode auto reads whole; default: whatever fits."
    )
    drain_timeout_s: float = Field(30, ge=0, description="Time for requests in flight to end after SIGTERM.")
    ping_s: float = Field(15, gt=0, description="Pause after which an event stream sends a ping.")
    response_days: float = Field(
        30, ge=0, description="Days for which /v1/responses keeps a response and its input; 0 keeps none."
    )
    key_requests_per_minute: int = Field(600, ge=1, description="Rate limit of one key, where it has none of its own.")
    key_concurrency: int = Field(32, ge=1, description="Requests at once of one key.")
    key_storage_mb: float = Field(10240, gt=0, description="Files that the owner of one key may store, in MiB.")

    webhook_private: bool = Field(
        False, description="Let webhooks of watched questions lead to the own network, and use http."
    )

    otlp_endpoint: str = Field(
        "", description="Where traces of questions go, as http://collector:4318/v1/traces (extra otel); empty for none."
    )

    # Log
    log_level: Literal["debug", "info", "warning", "error"] = Field("warning", description="Least level logged.")
    log_json: bool = Field(False, description="Log JSON lines instead of text.")

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: str) -> str:
        for origin in filter(None, origins.split(",")):
            if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+", origin.strip()):
                raise ValueError(f"{origin.strip()!r} is no origin, as https://app.example:8080 is")
        return origins

    @property
    def origins(self) -> list[str]:
        """`cors_origins`, one by one."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

    @property
    def engine(self) -> EngineConfig:
        """The options of the engine; documents that are warmed lie in the data folder."""
        options: dict[str, Any] = {name: getattr(self, name) for name in EngineConfig.model_fields}
        if self.warm_folder is None and self.tensor_parallel == 1:
            options["warm_folder"] = self.home / "kv"
        return EngineConfig(**options)

    @property
    def loopback(self) -> bool:
        """Whether the service can be reached from this machine only."""
        return self.host in LOOPBACK

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then environment, then the file."""
        file = _TomlFile(settings_cls, _config_file(init_settings()))
        return init_settings, env_settings, file


def load_settings(**flags: Any) -> Settings:
    """Settings from flags (None: not given), environment and file.

    Raises InvalidRequest naming the setting that is wrong, and where it may be set.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise InvalidRequest(_first_problem(error)) from error
    except (OSError, ValueError) as error:  # unreadable or malformed TOML
        raise InvalidRequest(f"The settings file {_config_file(given)} cannot be read: {error}.") from error


def stray_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """``FOLIO_*`` variables that name no setting: typing errors, most likely."""
    known = {f"FOLIO_{name.upper()}" for name in Settings.model_fields} | {"FOLIO_CONFIG"}
    return sorted(name for name in environment if re.match("FOLIO_", name) and name not in known)


def _config_file(flags: Mapping[str, Any]) -> Path | None:
    """The settings file: the one that is named, else the data folder's own, else none."""
    named = os.environ.get("FOLIO_CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise InvalidRequest(f"FOLIO_CONFIG names {named!r}, which is no file.", param="FOLIO_CONFIG")
        return path
    home = flags.get("home") or os.environ.get("FOLIO_HOME") or Settings.model_fields["home"].default
    path = Path(home).expanduser() / FILE_NAME
    return path if path.is_file() else None


def _first_problem(error: ValidationError) -> str:
    name, reason = first_problem(error)
    problem = error.errors(include_url=False)[0]
    if problem["type"] == "extra_forbidden":
        return f"There is no setting {name!r}."
    if not name:  # of several together, which may hold a secret
        return f"The settings contradict one another: {reason}."
    shown = "" if name == "api_key" else f" = {problem['input']!r}"
    return f"Setting {name!r}{shown} is not valid: {reason}. (Flag, FOLIO_{name.upper()}, or {FILE_NAME}.)"
