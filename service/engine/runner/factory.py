"""Which runner an engine gets: this process alone, graphs on a GPU, or the ranks that share the model."""

from __future__ import annotations

from service.engine.config import EngineConfig
from service.engine.kv.layout import checked_policy
from service.engine.loading.checkpoint import LoadedModel
from service.engine.runner.cuda_graphs import GraphCapture, GraphedRunner, make_buckets
from service.engine.runner.model_runner import ModelRunner
from service.engine.runner.pieces import piece_sizes
from service.engine.runner.tensor_parallel import LeadingRunner
from sparse_attn.kv.pool import KVPool
from sparse_attn.plan.graph_selection import GraphRule
from sparse_attn.plan.policy import ModelShape


def make_runner(loaded: LoadedModel, pool: KVPool, config: EngineConfig, shape: ModelShape) -> ModelRunner:
    """What runs the forwards of a model of that shape."""
    if loaded.ranks is not None:
        return LeadingRunner(loaded.model, pool, loaded.ranks, config.backend)
    if config.cuda_graphs and pool.device.type == "cuda":
        longest = min(loaded.max_len, config.max_model_len or loaded.max_len)
        pages = min(-(-longest // config.page_size), pool.num_pages)
        buckets = make_buckets(config.max_running)
        capture = GraphCapture()
        sizes = piece_sizes(config.step_tokens)
        policy = checked_policy(config.attention, shape).resolve(longest, shape)
        rule = GraphRule.of(policy, shape)
        if rule is not None and policy.needs_page_stats(shape):
            pool.keep_stats()
        runner = GraphedRunner(loaded.model, pool, buckets, pages, capture, config.backend, capture, sizes, rule)
        runner.run_the_rest(policy, shape)
        return runner
    return ModelRunner(loaded.model, pool, config.backend)
