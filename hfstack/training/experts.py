"""Settle how a mixture of experts is kept balanced while TRL's trainers train it.

TRL asks a model for its router's logits in each step, and leaves that request in the model's
configuration, where `generate` finds it: the loss of the routers is then computed of a single new
token with the mask of the whole text, which ends in a traceback, and so it is in the saved model.
Here the request is taken out of the configuration again, since TRL hands it in with each batch, and
a model whose routers have no such loss (no mixture after all, or one that computes none) is trained
without it.
"""

from typing import Any

import torch
from transformers import Trainer

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.models.evaluation_mode import evaluation_mode
from hfstack.models.output_head import without_adapter
from hfstack.models.probes import random_ids

logger = get_logger(__name__)

_REQUEST = "output_router_logits"
_EXPERTS = ("num_local_experts", "n_routed_experts")


def settle_router_loss(trainer: Trainer) -> None:
    """Train with the routers' loss where the model computes one, and say so.

    Raises:
        ConfigError: --router_aux_loss_coef was given, and the model computes no such loss.
    """
    trl: Any = trainer
    if not getattr(trl, "aux_loss_enabled", False):
        return

    model = trl.accelerator.unwrap_model(trl.model)
    inner = without_adapter(model)
    name_experts(inner.config.get_text_config())
    # in shards one process cannot run the model
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    problem = None if sharded else _router_loss_problem(inner)
    config = inner.config.get_text_config()
    if hasattr(trl.args, "router_aux_loss_coef"):  # the trainers that ask with each batch
        setattr(config, _REQUEST, False)

    if problem is None:
        logger.info("the loss of the routers is trained with a weight of %g", _weight(trl))
        return
    if getattr(trl.args, "router_aux_loss_coef", None):
        raise ConfigError(
            f"--router_aux_loss_coef {trl.args.router_aux_loss_coef}: {type(inner).__name__} "
            f"computes no loss of its routers ({problem}); leave it out"
        )
    trl.aux_loss_enabled = False
    setattr(config, _REQUEST, False)
    logger.warning("%s is trained without a loss of its routers: %s", type(inner).__name__, problem)


def name_experts(config: Any) -> None:
    """Give the number of experts the name by which TRL's loss asks for it.

    Granite's families call it `num_local_experts`, without the alias that Mixtral's has. What is
    saved keeps the family's own name.
    """
    own = next((name for name in _EXPERTS if hasattr(config, name)), None)
    if own is not None and not hasattr(config, "num_experts"):
        family = type(config)
        # an alias of an alias is not followed
        own = family.attribute_map.get(own, own)
        family.attribute_map = {**family.attribute_map, "num_experts": own}


def _weight(trainer: Any) -> float:
    """Return the weight of the routers' loss; ORPO's trainer calls it by another name."""
    found = getattr(trainer, "router_aux_loss_coef", None)
    return trainer.aux_loss_coef if found is None else found


def _router_loss_problem(model: Any) -> str | None:
    """Return why a model computes no loss of its routers, or None."""
    ids = random_ids(model, 2, 6)  # (B, T)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), _REQUEST: True}
    try:
        with evaluation_mode(model), torch.no_grad():
            loss = getattr(model(**inputs, use_cache=False), "aux_loss", None)
    except torch.OutOfMemoryError:
        raise
    # what is missing for the loss differs from model to model
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    if not isinstance(loss, torch.Tensor):
        return "it returns none"
    return None if bool(torch.isfinite(loss).all()) else "it is not finite"
