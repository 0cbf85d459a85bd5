"""Start a recipe as a fork of an interpreter that has imported its libraries.

`hfstack warm SOCKET RECIPE ...` (warm_server.py) is that interpreter. `hfstack run` asks it for a
recipe where `HFSTACK_WARM` names its socket, and starts a new interpreter where it does not answer:
the recipe does the same either way. Standard library only.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfstack.cli.launch import count_gpus

VARIABLE = "HFSTACK_WARM"
_HEADER = struct.Struct("!I")  # bytes of the message that follows
_PID_POLL_S = 0.1


class WarmProcess:
    """A recipe that is a fork of the warm interpreter; looks like Popen."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self._connection = connection
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal; None while the recipe runs."""
        if self._code is None:
            self._connection.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                self._code = self._read_code()
        return self._code

    def wait(self) -> int:
        """Wait for the end and return the exit code, negative after a signal."""
        if self._code is None:
            self._connection.settimeout(None)
            self._code = self._read_code()
        return self._code

    def _read_code(self) -> int:
        answer = receive(self._connection)
        self._connection.close()
        if answer is not None:
            return answer["code"]

        # The interpreter was killed, which ends the recipe with SIGTERM, and it may save.
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(self.pid, 0)
                time.sleep(_PID_POLL_S)
        return -signal.SIGTERM


def cannot_be_warm() -> str | None:
    """Return why no run of this machine may be a fork; None where one may."""
    if sys.platform != "linux":
        return "forks are tried on Linux alone"
    if count_gpus():
        return "a GPU's driver does not survive a fork"
    return None


def start_warm(
    command: list[str], environment: dict[str, str], say: Callable[[str], None]
) -> WarmProcess | None:
    """Start a command of Python in the warm interpreter; None where none can.

    Args:
        command: interpreter, recipe and flags.
        environment: of the recipe. What libraries read of it while they are imported is past, so
            the interpreter declines when it has another one.
        say: shows a line, such as why it declines.
    """
    path = environment.get(VARIABLE)
    if not path or not Path(path).exists():
        return None

    connection = socket.socket(socket.AF_UNIX)
    request = {"argv": command[1:], "environment": environment, "folder": str(Path.cwd())}
    try:
        connection.connect(path)
        send(connection, request | {"python": command[0]}, descriptors=(0, 1, 2))
        answer = receive(connection)
    except OSError:
        answer = None

    if answer is None or "pid" not in answer:
        connection.close()
        why = answer["cold"] if answer is not None else "it does not answer"
        say(f"the warm interpreter is not used: {why}")
        return None
    return WarmProcess(connection, answer["pid"])


def send(
    connection: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()
) -> None:
    """Send one message, and open files with it."""
    body = json.dumps(message).encode()
    socket.send_fds(connection, [_HEADER.pack(len(body))], descriptors)
    connection.sendall(body)


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """Return the next message; None when the other side has gone."""
    return receive_with_files(connection, 0)[0]


def receive_with_files(
    connection: socket.socket, count: int
) -> tuple[dict[str, Any] | None, list[int]]:
    """Return the next message and the open files that came with it, `count` at most.

    Raises:
        BlockingIOError: nothing has come, and the connection does not wait.
    """
    try:
        header, descriptors, _, _ = socket.recv_fds(connection, _HEADER.size, count)
        if len(header) < _HEADER.size:
            return None, descriptors

        connection.settimeout(None)
        body = bytearray()
        (size,) = _HEADER.unpack(header)
        while len(body) < size:
            part = connection.recv(size - len(body))
            if not part:
                return None, descriptors
            body += part
    except ConnectionError:
        return None, []
    return json.loads(body), descriptors
