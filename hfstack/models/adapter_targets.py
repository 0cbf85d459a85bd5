"""Choose what an adapter is put on, and find out before training whether it fits.

PEFT refuses some settings only while it wraps a model: dropout on the stacked weights of experts,
the projections of Mamba blocks that its kernels read past any wrapper, families whose layers it
does not know. Here the adapter is put on an empty copy of the model first, without weights.
"""

import copy
import warnings
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfstack.errors import ConfigError
from hfstack.logs import get_logger

logger = get_logger(__name__)

ALL_LINEAR = "all-linear"

# What `all-linear` means in PEFT beside linear layers, by the last part of the name: routers and
# stacked experts under their former names, and projections that Mamba's kernels read directly.
_EXPERT_LAYERS = frozenset({"gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"})
_STATE_SPACE = frozenset({"out_proj", "conv1d"})


def fit_adapter(config: PeftConfig, model: PreTrainedModel) -> PeftConfig:
    """Return the adapter's settings with targets that this model can take.

    Only `all-linear` is narrowed, to the linear layers that PEFT takes here, and a line says so.

    Args:
        config: as it was asked for.
        model: without an adapter.

    Raises:
        ConfigError: PEFT cannot put the adapter on this model.
    """
    targets = getattr(config, "target_modules", None)
    takes_all = isinstance(targets, str) and targets.lower() == ALL_LINEAR
    odd = [name for name in linear_layers(model) if _is_odd(model.get_submodule(name))]
    if takes_all and odd:
        refusal = f"{len(odd)} layers compute something else than a product, such as {odd[0]}"
    else:
        refusal = _why_refused(config, model)
    if refusal is None:
        return config

    if takes_all:
        linear = [name for name in linear_layers(model) if name not in odd]
        rest = (_STATE_SPACE, _EXPERT_LAYERS, _STATE_SPACE | _EXPERT_LAYERS)
        for left_out in (frozenset[str](), *rest) if odd else rest:
            kept = [name for name in linear if name.rpartition(".")[2] not in left_out]
            narrowed: Any = copy.deepcopy(config)
            narrowed.target_modules = set(kept)
            if kept and _why_refused(narrowed, model) is None:
                logger.warning(
                    "--lora_target_modules %s: the adapter is put on %d linear layers, without "
                    "%s, because PEFT cannot take all: %s",
                    targets,
                    len(kept),
                    ", ".join(sorted(left_out or {name.rpartition(".")[2] for name in odd})),
                    refusal,
                )
                return narrowed

    asked = f"--lora_target_modules {targets}" if targets is not None else "--use_peft"
    advice = "name layers of it with --lora_target_modules" if targets is None else "name others"
    raise ConfigError(
        f"{asked}: PEFT cannot put this adapter on {type(model).__name__}: {refusal}; {advice}, or "
        "train without --use_peft"
    )


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear layers of a model, without its output head."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]


def _is_odd(layer: torch.nn.Module) -> bool:
    """Return whether a layer is not the product that LoRA adds its own to."""
    plain = type(layer).forward in (torch.nn.Linear.forward, Conv1D.forward)
    return not plain and type(layer).__module__.startswith("transformers.models.")


def _why_refused(config: PeftConfig, model: PreTrainedModel) -> str | None:
    """Return why PEFT refuses an adapter on an empty copy of the model, or None."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = type(model)(copy.deepcopy(model.config))
        try:
            get_peft_model(empty, copy.deepcopy(config), low_cpu_mem_usage=True)
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
            return " ".join(str(error).split())[:200]
    return None
