"""Apply a function to the texts of rows in several processes, in their order.

The parent reads rows and hands their texts out in chunks; a worker returns what the function makes
of each. Results come back in the order of the rows, however long each takes, and only a few chunks
are under way at a time, so that memory does not grow with the rows.
"""

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from hfstack.errors import ConfigError, DataError, MachineError

TextRow = dict[str, Any]

# A chunk takes a worker some hundredths of a second: long beside the hundred microseconds that
# handing it over takes, short where a run is stopped.
_CHUNK_CHARACTERS = 1 << 17
_CHUNK_ROWS = 256
# one in work and two that wait, so that no worker waits for the parent
_CHUNKS_A_WORKER = 3

_BLOCKED_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# In a worker, what `_prepare_worker` received. The function is inherited rather than sent with each
# chunk, because a filter may be a lambda and an index of evaluation texts is large.
_worker_function: Callable[[str], Any] | None = None


def map_texts(
    function: Callable[[str], Any], rows: Iterable[TextRow], text_column: str, *, workers: int
) -> Generator[tuple[TextRow, Any], None, None]:
    """Yield each row with what the function returns for its text.

    None for a row without text.

    Args:
        function: depends on the text alone. It may be a closure; what it returns is pickled.
        rows: read in this process, a few chunks ahead.
        text_column: key of the text in a row.
        workers: processes beside this one.

    Raises:
        ConfigError: the system cannot fork processes.
        MachineError: a worker was ended from outside.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise ConfigError(f"workers {workers}: this system cannot fork processes; leave it at 1")

    waiting: deque[tuple[list[TextRow], Future[list[Any]]]] = deque()
    unreadable: DataError | None = None
    executor = ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), _prepare_worker, (function, os.getpid())
    )

    try:
        _start_workers(executor)
        for chunk in _chunks(rows, text_column):
            if isinstance(chunk, DataError):
                unreadable = chunk
                break

            texts = [row.get(text_column) for row in chunk]
            waiting.append((chunk, executor.submit(_apply, texts)))
            if len(waiting) == _CHUNKS_A_WORKER * workers:
                yield from _next_results(waiting)

        while waiting:
            yield from _next_results(waiting)
        if unreadable is not None:
            raise unreadable
    except BrokenProcessPool:
        raise MachineError(
            f"one of {workers} workers was ended from outside (by the system where memory is "
            "short): free memory or take fewer --workers, and start again"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process, and of the workers that have ended."""
    # os.times() counts in hundredths, which is more than a small set takes.
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _start_workers(executor: ProcessPoolExecutor) -> None:
    """Fork all workers, each of which handles signals itself from then on."""
    # A signal that arrives meanwhile would be handled in a worker as it is here.
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
    try:
        with warnings.catch_warnings():
            # From Python 3.12 on: the threads are those of libraries that a worker does not use.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            executor.submit(os.getpid).result()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED_SIGNALS)


def _next_results(
    waiting: "deque[tuple[list[TextRow], Future[list[Any]]]]",
) -> Iterator[tuple[TextRow, Any]]:
    """Yield rows and results of the chunk that was handed out first."""
    rows, future = waiting.popleft()
    yield from zip(rows, future.result(), strict=True)


def _chunks(rows: Iterable[TextRow], text_column: str) -> Iterator[list[TextRow] | DataError]:
    """Yield the rows in chunks, bounded in characters and in number.

    Where reading fails, the error comes last: what was read before has its turn first, as it has in
    one process.
    """
    chunk: list[TextRow] = []
    characters = 0
    iterator = iter(rows)

    while True:
        try:
            row = next(iterator)
        except StopIteration:
            break
        except DataError as error:
            yield chunk
            yield error
            return

        text = row.get(text_column)
        chunk.append(row)
        characters += len(text) if isinstance(text, str) else 0
        if characters >= _CHUNK_CHARACTERS or len(chunk) == _CHUNK_ROWS:
            yield chunk
            chunk, characters = [], 0

    yield chunk


def _prepare_worker(function: Callable[[str], Any], parent: int) -> None:
    """Prepare a worker for its function."""
    global _worker_function
    _worker_function = function
    leave_with_parent(parent)


def leave_with_parent(parent: int) -> None:
    """Let the parent alone decide when this process ends."""
    # Ctrl-C reaches every process of a terminal, and the parent handles it for all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED_SIGNALS)

    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """End this worker when its parent is gone without a word, as after kill -9."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _apply(texts: list[Any]) -> list[Any]:
    """Return what the function makes of each text; None where there is none."""
    assert _worker_function is not None, "a worker was not prepared"
    return [_worker_function(text) if isinstance(text, str) else None for text in texts]
