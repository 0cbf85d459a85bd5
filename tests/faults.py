"""A file system that fails: chosen files cannot be opened, read, looked at or listed."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from typing import Any, Self

import pytest

from hfstack import disk

# What a failing disk, a wrong owner, a full table of open files and a network file system answer.
CODES = [errno.EIO, errno.EACCES, errno.EMFILE, errno.ESTALE]
NAMES = [errno.errorcode[code] for code in CODES]


class Faults:
    """Plant errors of the system in one test, and count how often they struck."""

    def __init__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        self.struck = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Let everything work again."""
        self._patch.undo()

    def plant(self, code: int, name: str, *, at: str = "open", times: float = float("inf")) -> None:
        """Let what ends with `name` fail.

        Args:
            code: the errno.
            name: how the path ends.
            at: `open`, `read` (opened, and then it cannot be read), `stat` or `list`.
            times: how often it fails before it works again.
        """
        self.struck = 0
        self._patch.setattr(disk, "_PAUSES_S", (0, 0, 0))

        def strikes(path: Any) -> bool:
            if not isinstance(path, str | os.PathLike) or not os.fspath(path).endswith(name):
                return False
            self.struck += 1
            return self.struck <= times

        def failing(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
                if strikes(path):
                    raise OSError(code, os.strerror(code), os.fspath(path))
                return real(path, *args, **kwargs)

            return call

        if at == "open":
            for module in (io, builtins):
                self._patch.setattr(module, "open", failing(module.open))
        elif at == "read":
            for module in (io, builtins):
                self._patch.setattr(module, "open", _unreadable(module.open, code, strikes))
        elif at == "stat":
            self._patch.setattr(os, "stat", failing(os.stat))
        else:
            for call in ("listdir", "scandir"):
                self._patch.setattr(os, call, failing(getattr(os, call)))


def _unreadable(
    real: Callable[..., Any], code: int, strikes: Callable[[Any], bool]
) -> Callable[..., Any]:
    """Return an `open` whose chosen files raise when they are read; that names no file."""

    class Unreadable(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            raise OSError(code, os.strerror(code))

        def readall(self) -> bytes:
            raise OSError(code, os.strerror(code))

    def call(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "r" not in mode or not strikes(path):
            return real(path, mode, *args, **kwargs)
        stream = io.BufferedReader(Unreadable(path))
        return stream if "b" in mode else io.TextIOWrapper(stream, encoding="utf-8")

    return call
