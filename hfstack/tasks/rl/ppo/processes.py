"""Sum or maximise a number over processes, and give each its random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor


def sum_over_processes(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes."""
    if accelerator.num_processes == 1:
        return tensor
    return cast(Tensor, accelerator.reduce(tensor.to(accelerator.device), reduction="sum"))


def max_over_processes(accelerator: Accelerator, number: int) -> int:
    """Return the largest of a number over all processes."""
    if accelerator.num_processes == 1:
        return number
    gathered = accelerator.gather(torch.tensor([number], device=accelerator.device))
    return int(cast(Tensor, gathered).max())


@contextmanager
def random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Draw the random numbers of a seed, and leave those of training as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
