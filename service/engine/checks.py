"""What can be refused before a model's weights are read, or anything is retrieved for it.

transformers takes seconds to import: where no policy is named, nobody waits for it to be told of a wrong drafter.
"""

from __future__ import annotations

from collections.abc import Callable

from service.engine.config import EngineConfig
from service.engine.options import parse_drafter
from service.engine.request import SamplingParams
from service.engine.sampling.constraint import check_constraint
from sparse_attn.plan.policy import ModelShape


def check_options(params: SamplingParams, shape: Callable[[], ModelShape | None]) -> None:
    """Refuse a drafter that does not exist, a policy that a model of this shape does not allow, a bad grammar.

    Args:
        shape: of the model, asked for where a policy is named; None where its configuration does not tell, which
            refuses no policy here.

    Raises:
        InvalidRequest: names the option, what is wrong with it, and what there is.
    """
    if params.drafter:
        parse_drafter(params.drafter)
    if params.constraint is not None:
        check_constraint(params.constraint)
    if params.attention:
        from service.engine.kv.layout import checked_policy

        known = shape()
        if known is not None:
            checked_policy(params.attention, known)


def shape_of(model: str, config: EngineConfig) -> ModelShape | None:
    """What a policy depends on, by the model's configuration, without its weights.

    None for a configuration without attention heads, of which loading says what it lacks.

    Raises:
        ModelError: there is no such model.
    """
    from service.engine.loading.checkpoint import EMBEDDED, read_config

    described = read_config(model).get_text_config()
    fingerprint = model if model == EMBEDDED else ""
    try:
        return ModelShape.of_config(described, config.page_size, fingerprint=fingerprint)
    except AttributeError:
        return None
