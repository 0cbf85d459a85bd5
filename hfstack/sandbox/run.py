"""Run untrusted programs, bounded, and say of each whether it came to its end.

What holds, and what does not, is in docs/security.md. A program is Python source; it passes when
its last line was reached, and the last line of its tests, which run in another process (calls.py).
Exits, endless loops, kills and everything else are failures.
"""

import functools
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfstack.errors import ConfigError
from hfstack.logs import get_logger

logger = get_logger(__name__)

_CHILD = Path(__file__).with_name("child.py")
_START_S = 20.0  # of the interpreter and its root, on a machine that is busy
_FIRST_UID = 1_000_000  # of users that no system has, so that a limit on processes counts one run
_USERS = 1_000_000
_PROBE = "import socket, os\nassert os.listdir('/') and not os.path.exists('/proc/1')"


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    seconds: float = 5.0
    """Of the clock, and of the processor."""
    memory_bytes: int = 512 << 20
    """Of each process."""
    file_bytes: int = 1 << 20
    """Of each file."""
    disk_bytes: int = 8 << 20
    """Of all files, in the program's own root; they are memory."""
    processes: int = 8
    open_files: int = 32

    def as_rlimits(self, *, others: int = 0) -> dict[str, int]:
        """Return them as the system names them.

        Args:
            others: processes that the user has already, where they count too.
        """
        return {
            "CPU": max(1, round(self.seconds)),
            "AS": self.memory_bytes,
            "FSIZE": self.file_bytes,
            "NPROC": self.processes + others,
            "NOFILE": self.open_files,
            "CORE": 0,
        }


@dataclass(frozen=True)
class Program:
    """A program, and the tests that use what it defines."""

    source: str
    """Not trusted."""
    test: str = ""
    preamble: str = ""
    """Run before the tests, with them: what they use and the program is not asked for."""
    entry_point: str | None = None
    """What is asked for: of the program, although Python may have the name too."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    reason: str = ""  # of a failure


@dataclass(frozen=True)
class Sandbox:
    """Where programs run, as `open_sandbox` found that this system can."""

    isolated: bool
    limits: Limits = Limits()

    def run(self, program: Program | str) -> Outcome:
        """Run one program and return what became of it."""
        program = Program(program) if isinstance(program, str) else program
        # a user of its own for each run, or one run's processes would be counted to another
        uid = _FIRST_UID + secrets.randbelow(_USERS)
        with tempfile.TemporaryDirectory(prefix="hfstack-sandbox-") as root:
            Path(root).chmod(0o755 if self.isolated else 0o777)
            asked = {
                "program": program.source,
                "namespaces": self.isolated,
                "root": root,
                "readable": _interpreter_folders(),
                "disk_bytes": self.limits.disk_bytes,
                "seconds": self.limits.seconds,
                "limits": self.limits.as_rlimits(
                    others=0 if self.isolated or os.getuid() == 0 else _processes_of_this_user()
                ),
                "uid": uid,
                "tests_uid": uid + _USERS,
            }
            tests = {name: getattr(program, name) for name in ("test", "preamble", "entry_point")}
            said = _start(asked, tests, seconds=self.limits.seconds + _START_S)
        return Outcome(said == "passed", "" if said == "passed" else said.removeprefix("failed: "))

    def run_all(self, programs: Sequence[Program | str]) -> list[Outcome]:
        """Run several programs, as many at a time as there are processors."""
        with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
            return list(pool.map(self.run, programs))


def open_sandbox(
    limits: Limits | None = None, *, allow_root: bool = False, allow_weak: bool = False
) -> Sandbox:
    """Return the sandbox of this system, tried out once.

    Args:
        limits: of each program.
        allow_root: run although this process is root.
        allow_weak: run where the system gives no namespaces, with limits alone.

    Raises:
        ConfigError: this process is root, or the system gives no namespaces.
    """
    if sys.platform != "linux":
        raise ConfigError(f"programs are run on Linux only, and this is {sys.platform}")
    if os.getuid() == 0 and not allow_root:
        raise ConfigError(
            "this process is root, and a hole in the sandbox would be one in the whole machine: "
            "run as an ordinary user, or allow it with --allow_root true"
        )

    limits = limits or Limits()
    reason = why_not_isolated()
    if not reason:
        return Sandbox(isolated=True, limits=limits)
    if not allow_weak:
        raise ConfigError(
            f"this system gives programs no namespaces of their own ({reason}), so they could "
            "reach the network and your files: run where unshare works, such as outside a "
            "container, or accept it with --allow_weak_sandbox true"
        )

    logger.warning(
        "programs run without namespaces (%s): their time, memory, processes and files are "
        "bounded, but they can reach the network and what this user may read and write",
        reason,
    )

    # where the interpreter lies may be closed to the user that programs run as
    weak = Sandbox(isolated=False, limits=limits)
    tried = weak.run("import decimal")
    if not tried.passed:
        raise ConfigError(
            f"programs cannot be run here ({tried.reason}): another user must be able to read the "
            f"interpreter below {sys.base_prefix}"
        )
    return weak


@functools.cache
def why_not_isolated() -> str:
    """Return why the system gives no namespaces, or nothing where it does."""
    outcome = Sandbox(isolated=True).run(_PROBE)
    return "" if outcome.passed else outcome.reason


def _start(asked: dict[str, Any], tests: dict[str, Any], *, seconds: float) -> str:
    """Run the child and return what it says; a child that says nothing has failed.

    The tests come last: whoever is to read the program stops before them.
    """
    settings = json.dumps(asked).encode()
    written = b"%d\n%s%s" % (len(settings), settings, json.dumps(tests).encode())
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
        cwd="/",
        start_new_session=True,
    )
    try:
        said, errors = process.communicate(written, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"failed: still running after {seconds:g} s"
    finally:
        # the whole group, and with process 1 of its namespace all that is in it
        with suppress(OSError):
            os.killpg(process.pid, 9)
        process.kill()
        process.communicate()
    if not said:
        lines = errors.decode(errors="replace").strip().splitlines()
        return f"failed: {lines[-1] if lines else 'the sandbox did not start'}"
    return said.decode(errors="replace")


def _interpreter_folders() -> list[str]:
    """Return the folders of the interpreter that are not the system's, to be read."""
    folders = {Path(sys.base_prefix).resolve(), Path(sys.base_exec_prefix).resolve()}
    system = tuple(Path(name) for name in ("/usr", "/lib", "/bin"))
    return sorted(
        str(folder)
        for folder in folders
        if not any(folder.is_relative_to(known) for known in system)
    )


def _processes_of_this_user() -> int:
    """Return how many processes and threads this user has, which a limit counts too."""
    count = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if folder.stat().st_uid == os.getuid():
                    count += sum(1 for _ in (folder / "task").iterdir())
    return count
