"""Make a smaller model of some layers of a larger one.

A student that begins so has the embeddings, the head and the kept layers of its teacher, and learns
in a fraction of the steps that random weights need (Sanh et al. 2019, DistilBERT, section 3).
"""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hfstack.errors import ConfigError


def keep_layers(model: PreTrainedModel, kept: Sequence[int], option: str) -> PreTrainedModel:
    """Return a causal model that has some of the layers of another, in that order.

    The weights are copies, so the model itself is left as it is and can be dropped.

    Args:
        kept: numbers of layers from 0, ascending.
        option: the option that named them, for messages.

    Raises:
        ConfigError: a number that the model has no layer of, numbers twice or out of order, or a
            model that is no single stack of layers.
    """
    config = copy.deepcopy(model.config)
    count: int = getattr(config, "num_hidden_layers", None) or 0
    shown = " ".join(map(str, kept))
    stack = _find_stack(model, count) if count else None
    if stack is None:
        raise ConfigError(
            f"{option} {shown}: a {type(model).__name__} is no single stack of layers, of which "
            "some could be kept: name a smaller model with --model_name_or_path"
        )
    if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= count:
        raise ConfigError(
            f"{option} {shown} must be numbers from 0 to {count - 1}, each once and ascending: "
            f"the model has {count} layers"
        )

    # what the configuration says of each layer, such as which ones slide their attention
    config.num_hidden_layers = len(kept)
    if (types := getattr(config, "layer_types", None)) is not None:
        config.layer_types = [types[number] for number in kept]
    if getattr(config, "max_window_layers", None) is not None:
        config.max_window_layers = sum(number < config.max_window_layers for number in kept)

    # a new model, since a layer knows its own number, by which caches of generation are kept
    smaller: Any = AutoModelForCausalLM.from_config(
        config,
        dtype=model.dtype,
        attn_implementation=model.config._attn_implementation,
        trust_remote_code=False,
    )
    smaller.generation_config = copy.deepcopy(model.generation_config)
    weights = {}
    for name, value in model.state_dict().items():
        if not name.startswith(f"{stack}."):
            weights[name] = value
            continue
        number, rest = name.removeprefix(f"{stack}.").split(".", 1)
        if int(number) in kept:
            weights[f"{stack}.{kept.index(int(number))}.{rest}"] = value

    try:
        smaller.load_state_dict(weights)
    except RuntimeError as error:  # layers of several shapes, whose plan the configuration has
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{option} {shown}: the layers of a {type(model).__name__} do not fit where they would "
            f"stand: {cause}"
        ) from error
    return smaller.to(model.device)


def _find_stack(model: PreTrainedModel, count: int) -> str | None:
    """Return the name of the only stack of layers; None without one, or of more."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    # experts and the like are lists inside of layers
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    return outer[0] if len(outer) == 1 else None
