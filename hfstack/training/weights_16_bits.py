"""Refuse to train weights of 16 bits, or train them in fp32.

A bf16 weight has 8 bits of mantissa: an update below 1/512 of it is rounded away, and most updates
of a small learning rate are. PEFT keeps adapters in fp32, DeepSpeed a copy of all weights, and so
does FSDP2 under mixed precision (accelerate, `fsdp2_prepare_model`). What PEFT trains as a whole
beside an adapter, such as a new head, it leaves in the type of the base: here such a module gets
fp32 weights, and computes in them.

Legend: n weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import Trainer

from hfstack.errors import ConfigError
from hfstack.logs import get_logger

logger = get_logger(__name__)

_HALF_TYPES = (torch.bfloat16, torch.float16)
_WAY_OUT = "set --dtype float32, with --bf16 true to compute in 16 bits"


def settle_half_weights(trainer: Trainer) -> None:
    """Refuse to train weights of 16 bits, and log the type of those that are trained.

    Whole modules beside an adapter are turned to fp32.

    Raises:
        ConfigError: such a weight is trained as it is, or a whole embedding is.
    """
    model: Any = trainer.model
    mixed = trainer.accelerator.mixed_precision != "no"
    has_masters = trainer.is_deepspeed_enabled or (trainer.is_fsdp_enabled and mixed)
    if not has_masters:
        for name, module, embedding in _whole_half_modules(model):
            _turn_to_fp32(name, module, is_embedding=embedding)

    counts: dict[torch.dtype, int] = {}
    for weight in model.parameters():
        if weight.requires_grad:
            counts[weight.dtype] = counts.get(weight.dtype, 0) + weight.numel()

    half = next((dtype for dtype in counts if dtype in _HALF_TYPES), None)
    if half is not None and not has_masters:
        raise ConfigError(
            f"{counts[half]:,} weights of {_short(half)} would be trained, and most updates "
            f"rounded away: {_WAY_OUT}, or train an adapter with --use_peft"
        )

    shown = " and ".join(f"{n:,} in {_short(dtype)}" for dtype, n in counts.items())
    logger.info("weights that are trained: %s", shown)


def _whole_half_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield whole modules of 16 bits that PEFT trains.

    With the name of each, and whether it is an embedding.
    """
    embeddings = {
        found
        for module in model.modules()
        for getter in ("get_input_embeddings", "get_output_embeddings")
        if (found := _call(module, getter)) is not None
    }
    for name, wrapper in model.named_modules():
        if not isinstance(wrapper, ModulesToSaveWrapper):
            continue
        for module in wrapper.modules_to_save.values():
            if any(one.requires_grad and one.dtype in _HALF_TYPES for one in module.parameters()):
                yield name.rpartition(".")[2], module, wrapper in embeddings or module in embeddings


def _call(module: nn.Module, getter: str) -> Any:
    """Return what a model's method returns, None where it has no answer."""
    try:
        return getattr(module, getter)()
    except (AttributeError, NotImplementedError):  # upstream's answer for: there is none
        return None


def _turn_to_fp32(name: str, module: nn.Module, *, is_embedding: bool) -> None:
    """Give a module fp32 weights, and the inputs and outputs of its base's type.

    Raises:
        ConfigError: it is an embedding or the language-model head, whose weights losses read
            directly.
    """
    half = next(one.dtype for one in module.parameters() if one.dtype in _HALF_TYPES)
    if is_embedding:
        raise ConfigError(
            f"--lora_modules_to_save {name}: it would be trained in {_short(half)}, and most "
            f"updates rounded away: {_WAY_OUT}, or leave {name} out"
        )

    def widen(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_cast(one, half, torch.float32) for one in inputs)

    def narrow(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return _cast(output, torch.float32, half)

    module.float()
    module.register_forward_pre_hook(widen)
    module.register_forward_hook(narrow)
    logger.info("%s, which is trained beside the adapter, has fp32 weights", name)


def _cast(value: Any, source: torch.dtype, target: torch.dtype) -> Any:
    """Return a tensor of one type in another; anything else as it is."""
    is_source = isinstance(value, torch.Tensor) and value.dtype == source
    return value.to(target) if is_source else value


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
