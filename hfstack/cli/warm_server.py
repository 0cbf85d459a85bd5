"""Import libraries once, and fork each run: `hfstack warm SOCKET RECIPE ...`.

The libraries take some seconds of CPU to import, several times over in a script of many stages.
This process only imports: it has opened no device, run no operation in parallel and drawn no random
number, so that a fork of it is what a new interpreter would be after its imports. Each run is a
process of its own, with its own session, signals, memory and exit code.

It ends with the shell that started it, and a run ends (and saves) when it does. Linux only, and on
machines without a GPU, whose driver does not survive a fork.
"""

import contextlib
import ctypes
import gc
import os
import runpy
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from hfstack.cli.start import cheaper_imports, import_what_it_needs, settle_threads
from hfstack.cli.warm import receive_with_files, send
from hfstack.shipped import RECIPES

# What a shell changes from command to command, and what `hfstack run` adds.
_MAY_DIFFER = {"_", "SHLVL", "PWD", "OLDPWD", "COLUMNS", "LINES", "HFSTACK_PROCESSES"}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Serve until the shell that started this process ends; in a fork, run one recipe."""
    path, *recipes = sys.argv[1:]
    # Imports change the environment, in here as in any interpreter.
    started_with = dict(os.environ)
    shell = os.getppid()
    _end_with_parent(shell)
    # Ctrl-C reaches the whole group of a terminal; `hfstack run` forwards it to the recipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    settle_threads()
    with cheaper_imports():
        for recipe in recipes:
            import_what_it_needs(RECIPES / f"{recipe}.py")
        # Collected once and never visited again, so that forks go on sharing these pages.
        gc.collect()

    request = serve(path, started_with)
    if request is not None:
        run(request)


def serve(path: str, environment: dict[str, str]) -> dict[str, Any] | None:
    """Fork a run for each request; return the request in the fork."""
    listener = socket.socket(socket.AF_UNIX)
    # Whoever may connect may run what this user may run: nobody else, wherever the socket lies.
    before = os.umask(0o177)
    try:
        listener.bind(f"{path}.new")
    finally:
        os.umask(before)
    listener.listen()
    Path(f"{path}.new").rename(path)  # the name appears when the socket is ready

    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    runs: dict[int, tuple[int, socket.socket]] = {}  # of each run's pidfd: pid and connection

    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request = _accept(connection, environment, selector, runs)
                if request is not None:
                    listener.close()
                    return request
            elif key.fd in runs:
                _report_end(key.fd, selector, runs)
            else:
                # `hfstack run` was killed; its recipe saves and ends
                selector.unregister(key.fileobj)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(key.data, signal.SIGTERM)


def _accept(
    connection: socket.socket,
    environment: dict[str, str],
    selector: selectors.BaseSelector,
    runs: dict[int, tuple[int, socket.socket]],
) -> dict[str, Any] | None:
    """Fork a run that a client asks for; return its request in the fork."""
    request, files = receive_with_files(connection, 3)
    reason = "the request was torn" if request is None else _decline(request, environment)
    if reason is not None or request is None:
        with contextlib.suppress(OSError):
            send(connection, {"cold": reason})
        connection.close()
        _close(files)
        return None

    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        selector.close()
        connection.close()
        for other, others_connection in runs.values():
            del other
            others_connection.close()
        _end_with_parent(server)
        return request | {"files": files}

    _close(files)
    handle = os.pidfd_open(pid)
    runs[handle] = (pid, connection)
    selector.register(handle, selectors.EVENT_READ)
    selector.register(connection, selectors.EVENT_READ, data=pid)
    with contextlib.suppress(OSError):
        send(connection, {"pid": pid})
    return None


def _decline(request: dict[str, Any], environment: dict[str, str]) -> str | None:
    """Return why a fork would not be what a new interpreter is; None if it is."""
    if request["python"] != sys.executable:
        return f"this is {sys.executable}"
    asked = request["environment"]
    names = asked.keys() | environment.keys()
    changed = {name for name in names if asked.get(name) != environment.get(name)}
    if changed - _MAY_DIFFER:
        return f"the environment differs: {', '.join(sorted(changed - _MAY_DIFFER))}"
    return None


def _report_end(
    handle: int, selector: selectors.BaseSelector, runs: dict[int, tuple[int, socket.socket]]
) -> None:
    """Send the exit code of a run that has ended."""
    pid, connection = runs.pop(handle)
    selector.unregister(handle)
    os.close(handle)
    with contextlib.suppress(KeyError, ValueError):
        selector.unregister(connection)

    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        send(connection, {"code": os.waitstatus_to_exitcode(status)})
    connection.close()


def run(request: dict[str, Any]) -> None:
    """Run a recipe in this fork as `python recipe.py FLAGS` would."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)

    # the terminal or files of the command that asked
    for target, given in enumerate(request["files"]):
        os.dup2(given, target)
    _close(request["files"])
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]

    os.chdir(request["folder"])
    for name in _MAY_DIFFER:
        os.environ.pop(name, None)
        if name in request["environment"]:
            os.environ[name] = request["environment"][name]
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _end_with_parent(parent: int) -> None:
    """Have this process receive SIGTERM when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # it may have ended already
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
