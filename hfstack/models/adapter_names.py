"""Read which modules an adapter is asked for, and refuse names that fit none.

PEFT trains what it finds: of `q_proj vproj` the first alone, and nobody hears of the second.
"""

import re
from typing import Any, cast

from peft import LoraConfig, PeftConfig
from transformers import PreTrainedModel
from trl import ModelConfig

from hfstack.errors import ConfigError
from hfstack.models.adapter_targets import ALL_LINEAR, fit_adapter, linear_layers


def adapter_for(
    args: ModelConfig, model: PreTrainedModel, *, adapts_head: bool = True
) -> PeftConfig | None:
    """Return the adapter that --use_peft describes, fitted to a model, or None.

    A single name means the modules of that name: PEFT would take it for a pattern of whole names.

    Args:
        args: the description of the model.
        model: without an adapter.
        adapts_head: the trainer reads the head's output; TRL's multiply by its weights alone, which
            leaves an adapter out.

    Raises:
        ConfigError: a name fits no module or parameter, or PEFT cannot put the adapter there.
    """
    if not args.use_peft:
        return None
    # Late: it brings pandas and datasets, which a model without an adapter does not need.
    from trl import get_peft_config

    config = cast(LoraConfig, get_peft_config(args))

    targets = config.target_modules
    named = [targets] if isinstance(targets, str) else sorted(targets or ())
    if isinstance(targets, str) and targets != ALL_LINEAR and re.fullmatch(r"[\w.]+", targets):
        config.target_modules = named
    if isinstance(config.target_modules, list | set):
        _check_targets(named, model, adapts_head=adapts_head)

    for name in config.modules_to_save or ():
        if not _adapted_places(name, model.named_modules()):
            raise ConfigError(_not_found("--lora_modules_to_save", name, model))
    for name in config.target_parameters or ():
        if not _adapted_places(name, model.named_parameters()):
            raise ConfigError(
                f"--lora_target_parameters {name}: {type(model).__name__} has no parameter of that "
                "name"
            )
    return fit_adapter(config, model)


def _check_targets(names: list[str], model: PreTrainedModel, *, adapts_head: bool) -> None:
    """Refuse names that fit no module, and a head whose adapter would be left out."""
    head = None if adapts_head else model.get_output_embeddings()
    for name in names:
        found = _adapted_places(name, model.named_modules())
        if not found:
            raise ConfigError(_not_found("--lora_target_modules", name, model))
        if head is not None and any(module is head for module in found.values()):
            raise ConfigError(
                f"--lora_target_modules {name}: this trainer multiplies by the head's weights, "
                f"which leaves an adapter of it out; name it in --lora_modules_to_save {name}, "
                "which trains it whole"
            )


def _adapted_places(name: str, parts: Any) -> dict[str, Any]:
    """Return the modules or parameters of a name, as PEFT finds them."""
    return {place: part for place, part in parts if place == name or place.endswith(f".{name}")}


def _not_found(flag: str, name: str, model: PreTrainedModel) -> str:
    layers = dict.fromkeys(place.rpartition(".")[2] for place in linear_layers(model))
    return f"{flag} {name}: the model has no such module; its linear layers are {', '.join(layers)}"
