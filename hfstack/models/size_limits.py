"""Bound a model by its config.json before anything of it is built.

A config.json is a kilobyte that says how much is built: 10 million layers take hours and all memory
before the first weight is read. Weights say how many tensors there are, in their headers.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from hfstack.errors import HfstackError

# What models call the number of their modules.
_LAYERS = frozenset(
    "num_hidden_layers num_layers n_layer n_layers num_decoder_layers encoder_layers "
    "decoder_layers num_encoder_layers num_blocks num_hidden_groups inner_group_num".split()
)
_EXPERT_COUNTS = frozenset(
    "num_experts num_local_experts n_routed_experts n_shared_experts".split()
)
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
_MOST_MODULES = 1024
_MOST_NESTED = 8
_MOST_HEADER_BYTES = 100 << 20  # safetensors' own limit


def refuse_too_many_modules(
    config: Mapping[str, Any], place: object, *, raises: type[HfstackError], folder: Path | None
) -> None:
    """Raise when a config says more modules than weights, or any model, can have.

    Args:
        config: the content of a config.json.
        place: what a message begins with.
        raises: the error.
        folder: of the weights; None where there are none yet, or not here.
    """
    tensors = _count_tensors(folder) if folder is not None else 0
    most = max(_MOST_MODULES, tensors)
    layers = experts = 1
    for name, value in _numbers(config):
        if name not in _LAYERS | _EXPERT_COUNTS:
            continue
        if value < 0:
            raise raises(f"{place}: {name} is {value:,}, and no number of them")
        if value > most:
            found = f"its weights have {tensors:,} tensors" if tensors else f"{most:,} are read"
            raise raises(f"{place}: {name} is {value:,} where at most {found}")
        layers = max(layers, value if name in _LAYERS else 1)
        experts = max(experts, value if name in _EXPERT_COUNTS else 1)

    if layers * experts > max(100 * _MOST_MODULES, tensors):
        raise raises(f"{place}: {layers:,} layers of {experts:,} experts are more than are read")


def refuse_more_than_memory(
    config: Mapping[str, Any], place: object, *, raises: type[HfstackError]
) -> None:
    """Raise when new weights of an architecture cannot fit into this machine's memory."""
    numbers = list(_numbers(config))
    width = max((value for name, value in numbers if name in _WIDTHS), default=0)
    layers = max((value for name, value in numbers if name in _LAYERS), default=1)
    # Attention alone has two square matrices or more in each layer, of 2 bytes or more a weight.
    least_bytes = 2 * 2 * layers * width * width
    memory = psutil.virtual_memory().total
    if least_bytes > memory:
        raise raises(
            f"{place}: {layers:,} layers of width {width:,} are {least_bytes / 2**30:,.0f} GiB of "
            f"weights or more, this machine has {memory / 2**30:,.0f} GiB"
        )


def _numbers(config: Mapping[str, Any], level: int = 0) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers of a config by name, of configs inside it as well."""
    for name, value in config.items():
        if isinstance(value, Mapping) and level < _MOST_NESTED:
            yield from _numbers(value, level + 1)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield str(name), value


def _count_tensors(folder: Path) -> int:
    """Return how many tensors the safetensors files of a folder have by their headers."""
    count = 0
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > _MOST_HEADER_BYTES:
                    continue
                header = json.loads(file.read(length))
        except (OSError, ValueError, RecursionError):
            continue  # who reads the weights says what is wrong with them
        count += len(header) if isinstance(header, dict) else 0
    return count
