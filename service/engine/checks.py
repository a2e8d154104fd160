"""What can be refused before a model's weights are read, or anything is retrieved for it.

torch and transformers take seconds to import: each check imports what it needs, so that nobody waits for them to be
told of a wrong drafter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from service.engine.config import EngineConfig
from service.engine.options import check_policy, parse_drafter, parse_policy

if TYPE_CHECKING:
    from service.engine.sampling.grammars import Constraint
    from sparse_attn.plan.policy import ModelShape


def check_options(
    drafter: str | None,
    attention: str | None,
    constraint: Constraint | None,
    shape: Callable[[], ModelShape | None],
) -> None:
    """Refuse a drafter that does not exist, a policy that a model of this shape does not allow, a bad grammar.

    Args:
        shape: of the model, asked for where a policy is named; None where its configuration does not tell, which
            refuses no policy here.

    Raises:
        InvalidRequest: names the option, what is wrong with it, and what there is.
    """
    if drafter:
        parse_drafter(drafter)
    if constraint is not None:
        from service.engine.sampling.grammars import inspect

        inspect(constraint)
    if attention:
        policy = parse_policy(attention)
        known = shape()
        if known is not None:
            check_policy(policy, known)


def shape_of(model: str, config: EngineConfig) -> ModelShape | None:
    """What a policy depends on, by the model's configuration, without its weights.

    None for a configuration without attention heads, of which loading says what it lacks.

    Raises:
        ModelError: there is no such model.
    """
    from service.engine.loading.checkpoint import EMBEDDED, read_config
    from sparse_attn.plan.policy import ModelShape

    described = read_config(model).get_text_config()
    fingerprint = model if model == EMBEDDED else ""
    try:
        return ModelShape.of_config(described, config.page_size, fingerprint=fingerprint, checkpoint=model)
    except AttributeError:
        return None
