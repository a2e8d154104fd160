"""The engine: any transformers decoder over paged KV, many requests at once."""

from service.engine.async_engine import AsyncEngine
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.request import Generation, SamplingParams, TokenOutput

__all__ = ["AsyncEngine", "Engine", "EngineConfig", "Generation", "SamplingParams", "TokenOutput"]
