"""Let the processes of one run decide together."""

from collections.abc import Callable
from typing import Any

import torch

from hfstack.errors import AlreadyFinished, HfstackError


def decide_on_first(rank: int, decide: Callable[[], Any]) -> Any:
    """Decide on rank 0, and return or raise the same on every process.

    By themselves the others might decide otherwise: they look at the files a moment later, or on
    disks of their own.

    Args:
        rank: of this process.
        decide: called on rank 0 alone.
    """
    # what was decided, and the error in its place
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome[0] = decide()
        except (HfstackError, AlreadyFinished) as error:
            outcome[1] = error

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
