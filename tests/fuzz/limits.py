"""What every fuzz test asks: a result or one line, soon, and in bounded memory."""

import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

from hfstack.errors import AlreadyFinished, HfstackError

# What hypothesis notes beside its examples does not belong into a checkout.
set_hypothesis_home_dir(tempfile.mkdtemp(prefix="hypothesis-"))

LONG = 10_000
_MOST_S = 10.0
_MOST_KIB = 1 << 20
# A call that waits spends no processor time: by the clock it has longer, for a busy machine.
_MOST_WALL_S = 120

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_ALL = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


class Waits(BaseException):
    """A call that has not ended by the clock; no handler of exceptions shall take it."""


@dataclass
class Tally:
    """How many calls of a test there were, and the most that one of them took."""

    calls: int = 0
    refused: int = 0
    seconds: float = 0.0
    kib: int = 0
    case: tuple[Any, ...] = ()
    slowest: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.calls} calls, {self.refused} of them refused in one line; the longest took "
            f"{self.seconds:.2f} s of processor time, the largest {self.kib / 1024:.0f} MiB"
            + (f"; the slowest case was {self.slowest}" if self.slowest else "")
        )


def short(examples: int) -> settings:
    """Return the profile of the default suite: few examples, the same each time."""
    return settings(max_examples=examples, derandomize=True, **_ALL)  # type: ignore[arg-type]


def check_many(
    seed: int, tally: Tally, draw: Callable[[random.Random], Any], check: Callable[..., None]
) -> None:
    """Check the 10,000 cases of a slow test, and name all that fail, and the slowest.

    A case is a few numbers and names, in which hypothesis has nothing to make smaller; without it
    each costs half as much.
    """
    choose = random.Random(seed)
    failures = []
    for _ in range(LONG):
        tally.case = draw(choose)
        try:
            check(*tally.case)
        except Exception as error:
            failures.append(f"{tally.case}: {type(error).__name__}: {str(error)[:200]}")
    assert not failures, f"{len(failures)} of {LONG} fail:\n" + "\n".join(failures[:50])


def outcome(call: Callable[[], Any], tally: Tally | None = None) -> Any:
    """Return what a call returns, or the line that it refuses with.

    Any other exception goes through, and is a traceback for the user. Fails on a line that is none,
    on more than 10 s of processor time, on a call that waits, and on 1 GiB of memory beyond what
    there was before it.
    """
    tally = tally or Tally()
    tally.calls += 1
    began, before_kib = time.process_time(), _forget_peak()
    try:
        with _given_up():
            result: Any = call()
    except (HfstackError, AlreadyFinished) as error:
        result = error
        tally.refused += 1
        assert str(error).strip() and "\n" not in str(error).strip()

    seconds, grown_kib = time.process_time() - began, _peak_kib() - before_kib
    if seconds > tally.seconds:
        tally.slowest = tally.case
    tally.seconds, tally.kib = max(tally.seconds, seconds), max(tally.kib, grown_kib)
    assert seconds < _MOST_S
    assert grown_kib < _MOST_KIB
    return result


@contextmanager
def _given_up() -> Iterator[None]:
    """Raise `Waits` in what runs inside when it has not ended by the clock."""

    def give_up(_number: int, _frame: object) -> None:
        raise Waits(f"not done after {_MOST_WALL_S} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_MOST_WALL_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _forget_peak() -> int:
    """Set the peak of the process's memory back to what it has now, and return that, in KiB.

    Otherwise the highest peak of all calls would hide what a later one takes. Only Linux can.
    """
    try:
        _CLEAR.write_text("5")
    except OSError:
        return _peak_kib()
    return _peak_kib()


def _peak_kib() -> int:
    if not _STATUS.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = _STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
