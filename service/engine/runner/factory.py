"""Which runner an engine gets: this process alone, graphs on a GPU, or the ranks that share the model."""

from __future__ import annotations

from service.engine.config import EngineConfig
from service.engine.loading.checkpoint import LoadedModel
from service.engine.runner.cuda_graphs import GraphCapture, GraphedRunner, make_buckets
from service.engine.runner.model_runner import ModelRunner
from service.engine.runner.tensor_parallel import LeadingRunner
from sparse_attn.kv.pool import KVPool


def make_runner(loaded: LoadedModel, pool: KVPool, config: EngineConfig) -> ModelRunner:
    """What runs the forwards."""
    if loaded.ranks is not None:
        return LeadingRunner(loaded.model, pool, loaded.ranks, config.backend)
    if config.cuda_graphs and pool.device.type == "cuda":
        longest = min(loaded.max_len, config.max_model_len or loaded.max_len)
        pages = min(-(-longest // config.page_size), pool.num_pages)
        buckets = make_buckets(config.max_running)
        return GraphedRunner(loaded.model, pool, buckets, pages, GraphCapture(), config.backend)
    return ModelRunner(loaded.model, pool, config.backend)
