"""Show how far long work is: a bar on a terminal, a line a minute in a log."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from hfstack.logs import NOTICE, get_logger

logger = get_logger(__name__)

LINE_EVERY_S = 60
_BAR_AFTER_S = 2  # what is done sooner needs no bar
_SPANS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def shows_bars() -> bool:
    """Return whether this process draws bars: the first one, on a terminal."""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


def follow(items: Iterable[ItemT], what: str, *, total: int | None = None) -> Iterator[ItemT]:
    """Yield items, and show how many have come where that takes long.

    Args:
        items: what is worked through, as slowly as the reader of this takes it.
        what: what is done, such as `reading rows`.
        total: how many there are, if that is known.
    """
    if total == 1:  # nothing to see between the beginning and the end
        yield from items
        return
    if shows_bars():
        yield from tqdm(
            items, desc=what, total=total, delay=_BAR_AFTER_S, leave=False, dynamic_ncols=True
        )
        return

    began = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        # Only the first process writes lines of this level.
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            logger.log(NOTICE, "%s: %s", what, describe_progress(count, total, last - began))


def follow_calls(
    function: Callable[[ItemT], ResultT], what: str, *, total: int
) -> Callable[[ItemT], ResultT]:
    """Return a function whose calls are counted in a log, in a line a minute.

    For `Dataset.map`, which draws a bar of its own on a terminal, and in a log shows nothing.

    Args:
        function: is called once for each item.
        what: what is done, such as `encoding train rows`.
        total: how often it will be called.
    """
    if shows_bars():
        return function
    began = last = time.monotonic()
    count = 0

    def counted(item: ItemT) -> ResultT:
        nonlocal last, count
        count += 1
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            logger.log(NOTICE, "%s: %s", what, describe_progress(count - 1, total, last - began))
        return function(item)

    return counted


def describe_progress(done: int, total: int | None, seconds: float | None = None) -> str:
    """Return `1,200 of 4,000 (30 %), about 3 minutes left`.

    Args:
        seconds: that it took so far; None leaves the time left out.
    """
    if not total:
        return f"{done:,}"
    text = f"{done:,} of {total:,} ({done / total:.0%})".replace("%", " %")
    if seconds is None or not done or done >= total:
        return text
    return f"{text}, about {round_span(seconds / done * (total - done))} left"


def round_span(seconds: float) -> str:
    """Return a time as a person would say it: `3 minutes`, `1 hour`, `20 seconds`."""
    unit_s, unit = next((span for span in _SPANS if seconds >= 1.5 * span[0]), _SPANS[-1])
    count = max(1, round(seconds / unit_s))
    return f"{count} {unit if count > 1 else unit.removesuffix('s')}"
