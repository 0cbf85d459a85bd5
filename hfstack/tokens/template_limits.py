"""Bound the time and the memory of a chat template.

A template comes with a model and is a program: jinja's sandbox keeps it from the machine, and not
from a loop that never ends or a text that doubles in each step.
"""

import ctypes
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import jinja2
import psutil

from hfstack.errors import DataError

LONGEST_S = 5.0
MOST_GROWTH_BYTES = 512 << 20
_LOOK_EVERY_S = 0.05

# One operation in C cannot be interrupted: what can be large at once is refused beforehand.
_MOST_NUMBER = 10_000
_MOST_FACTOR, _MOST_PRODUCTS = 100, 2
_LONG_NUMBER = re.compile(r"\d{7}")


@lru_cache(maxsize=64)
def refuse_large_operations(template: str) -> None:
    """Raise DataError for a template with numbers that no layout of turns needs."""
    try:
        tokens = [
            (line, kind, text)
            for line, kind, text in jinja2.Environment().lex(template)
            if kind in ("operator", "integer", "float", "string")
        ]
    except jinja2.TemplateError:
        return  # who renders it says what is wrong with it

    products = 0
    for at, (line, kind, text) in enumerate(tokens):
        problem = None
        if kind in ("integer", "float") and _number(text) > _MOST_NUMBER:
            problem = f"the number {text[:20]}"
        elif kind == "string" and _LONG_NUMBER.search(text):
            problem = f"the number in {text[:40]}"
        elif kind == "operator" and text in ("*", "**"):
            products += 1
            around = tokens[max(at - 1, 0) : at + 2]
            factors = [_number(each) for _, name, each in around if name == "integer"]
            is_small = any(factor <= _MOST_FACTOR for factor in factors)
            if text == "**" or not is_small or products > _MOST_PRODUCTS:
                problem = f"the operator {text}"
        if problem is not None:
            raise DataError(
                f"the chat template has {problem} in line {line}, which can take all memory: "
                "templates are read with small numbers only; write it without"
            )


@contextmanager
def limited() -> Iterator[None]:
    """End what a block renders when it takes too long, or too much memory.

    Raises:
        DataError: it does.
    """
    entry = _WATCH.begin()
    try:
        yield
    except _OverLimit:
        pass
    finally:
        problem = _WATCH.end(entry)
    if problem is not None:
        raise DataError(f"the chat template {problem}: it loops, or doubles what it writes; fix it")


def _number(text: str) -> float:
    """Return the value of a number as a template spells it: 1_000, 0xff, 1e9."""
    plain = text.replace("_", "")
    try:
        return float(plain)
    except ValueError:
        return float(int(plain, 0))


class _OverLimit(BaseException):
    """Raised by the watching thread in one that renders."""


class _Rendering:
    """One block that is watched: its thread, its end, and the memory before."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.end_s = time.monotonic() + LONGEST_S
        self.begin_bytes = -1
        self.problem: str | None = None


class _Watch:
    """Watches all blocks of a process from one thread: a timer for each costs more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[_Rendering] = []
        self._process = -1

    def begin(self) -> _Rendering:
        """Watch a block of this thread; start the watching thread where there is none."""
        # A fork copies the lists and not the thread.
        if self._process != os.getpid():
            self._lock, self._running = threading.Lock(), []
            self._process = os.getpid()
            threading.Thread(target=self._look, name="templates", daemon=True).start()

        entry = _Rendering()
        with self._lock:
            self._running.append(entry)
        return entry

    def end(self, entry: _Rendering) -> str | None:
        """Watch a block no longer; return what was wrong with it."""
        with self._lock:
            self._running.remove(entry)
            if entry.problem is not None:
                _raise_in(entry.thread, None)  # it may have ended before it was interrupted
        return entry.problem

    def _look(self) -> None:
        memory = psutil.Process().memory_info
        while True:
            time.sleep(_LOOK_EVERY_S)
            with self._lock:
                for entry in self._running:
                    if entry.begin_bytes < 0:
                        entry.begin_bytes = memory().rss
                    elif entry.problem is None:
                        entry.problem = self._judge(entry, memory().rss)

    def _judge(self, entry: _Rendering, bytes_now: int) -> str | None:
        """Interrupt a block that is over a limit, and return what is wrong with it."""
        problem = None
        if bytes_now - entry.begin_bytes > MOST_GROWTH_BYTES:
            problem = f"took more than {MOST_GROWTH_BYTES >> 20} MiB for one conversation"
        elif time.monotonic() > entry.end_s:
            problem = f"took more than {LONGEST_S:g} s for one conversation"
        if problem is not None:
            _raise_in(entry.thread, _OverLimit)
        return problem


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an error in a thread at its next step, or take back one that waits there."""
    what = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)


_WATCH = _Watch()
