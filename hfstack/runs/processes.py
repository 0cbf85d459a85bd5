"""Let the processes of one run decide together, and name those that hang."""

import re
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from hfstack.errors import AlreadyFinished, HfstackError, ProcessError

# How gloo says that it waited in vain, and that the other end is gone.
_WAITED = re.compile(r"timed? ?out|wait timeout", re.IGNORECASE)
_GONE = re.compile(r"connection (closed|reset)|broken pipe|connection refused", re.IGNORECASE)
# All that waited for one process give up at about the same time, and say so to each other.
_ANSWER_S = 5.0


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

    if (distributed := _open_group()) is not None:
        distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def hold_timeout(seconds: float) -> None:
    """Give up on another process after so many seconds, on CPUs as well.

    TrainingArguments hands `--ddp_timeout` to groups of GPUs alone; one of CPUs waits 30 minutes.
    """
    if (distributed := _open_group()) is not None:
        distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def name_silent(rank: int, error: BaseException | None) -> ProcessError | None:
    """Return an error that names the processes that did not answer, or None.

    Args:
        rank: of this process.
        error: what a collective raised.
    """
    distributed = _open_group()
    if distributed is None:
        return None
    if not isinstance(error, RuntimeError) or isinstance(error, HfstackError):
        return None
    waited, gone = _WAITED.search(str(error)), _GONE.search(str(error))
    if waited is None and gone is None:
        return None

    world_size = distributed.get_world_size()
    try:
        silent = _find_silent(distributed, rank, world_size)
    except RuntimeError:
        # Without a launcher the first process keeps what the others ask for.
        silent = [0]
    if not silent:
        return None

    which = f"process {', '.join(map(str, silent))} of {world_size} (counted from 0)"
    if waited is not None:
        what = f"{which} did not answer within --ddp_timeout seconds: it hangs or was stopped"
    else:
        what = f"{which} has ended, and its own last lines say why"
    first_left = min(set(range(world_size)) - set(silent))
    return ProcessError(f"{what}; start again with --resume_from_checkpoint last", first_left)


def _open_group() -> Any:
    """Return torch.distributed where this run has several processes, else None.

    A recipe that has not imported torch runs in one.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return None
    return torch.distributed if torch.distributed.is_initialized() else None


def _find_silent(distributed: Any, rank: int, world_size: int) -> list[int]:
    """Return the ranks that do not say within some seconds that they are waiting, too."""
    kept = distributed.distributed_c10d._get_default_store()
    store = distributed.PrefixStore("hfstack/waiting", kept)
    store.set_timeout(timedelta(seconds=_ANSWER_S))
    store.set(str(rank), "")

    silent = [other for other in range(world_size) if other != rank]
    deadline = time.monotonic() + _ANSWER_S
    while silent and time.monotonic() < deadline:
        silent = [other for other in silent if not store.check([str(other)])]
        time.sleep(0.05)
    return silent
