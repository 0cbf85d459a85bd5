"""What every fuzz test asks: a result or one line, soon, and in bounded memory."""

import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

from hfstack.errors import AlreadyFinished, HfstackError

# What hypothesis notes beside its examples does not belong into a checkout.
set_hypothesis_home_dir(tempfile.mkdtemp(prefix="hypothesis-"))

LONG = 10_000
_MOST_S = 10.0
_MOST_KIB = 1 << 20

_ALL = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def short(examples: int) -> settings:
    """Return the profile of the default suite: few examples, the same each time."""
    return settings(max_examples=examples, derandomize=True, **_ALL)  # type: ignore[arg-type]


def long() -> settings:
    """Return the profile of the slow tests, whose seeds the tests name."""
    return settings(max_examples=LONG, **_ALL)  # type: ignore[arg-type]


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the line that it refuses with.

    Any other exception goes through, and is a traceback for the user. Fails on a line that is none,
    on more than 10 s of processor time and on 1 GiB of memory beyond what there was.
    """
    began, before_kib = time.process_time(), _peak_kib()
    try:
        result: Any = call()
    except (HfstackError, AlreadyFinished) as error:
        result = error
        assert str(error).strip()
    assert time.process_time() - began < _MOST_S
    assert _peak_kib() - before_kib < _MOST_KIB
    return result


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
