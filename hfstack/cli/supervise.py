"""Run a launch: show its output, forward signals, return the recipe's exit code.

Launchers turn every outcome but success into 1 and a long report. So the report goes to a log file,
the output of the first process to the terminal as it comes, and the exit code is read from
run.json. Standard library only.
"""

import contextlib
import ctypes
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from hfstack.cli.launch import Launch
from hfstack.cli.warm import WarmProcess, start_warm
from hfstack.errors import ConfigError
from hfstack.redaction import redact

EXIT_MISTAKE, EXIT_PREEMPTED, EXIT_INTERRUPTED = 1, 75, 130
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.1
_Process = subprocess.Popen[bytes] | WarmProcess


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a launch ended."""

    code: int
    """0 done, 1 a mistake or a failure, 75 preempted, 128 + n when it died of signal n."""
    stopped: bool = False
    """Return whether it was asked to stop."""
    status: str | None = None
    """The status in run.json; None when this launch did not write it."""
    error_kind: str | None = None
    """The class of the error in run.json, if any."""


def execute(launch: Launch) -> Ending:
    """Run a launch to its end, and return how it ended.

    Raises:
        ConfigError: the log file cannot be written.
    """
    run_file = launch.output_dir / "run.json" if launch.output_dir else None
    before = _file_stamp(run_file)
    environment = {**os.environ, **launch.environment}
    if launch.log_file:
        # The output goes to a file, where it would otherwise arrive in blocks of 8 KiB.
        environment["PYTHONUNBUFFERED"] = "1"

    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_open_log(launch)) if launch.log_file else None

        # Without a log the recipe has the terminal to itself.
        command = launch.command
        output, errors, screen = None, None, None
        if log:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hfstack-")))
            if launch.launcher == "torchrun":
                # torchrun itself writes <folder>/<run>/attempt_0/<local rank>/std{out,err}.log.
                at = command.index("--tee")
                command = [*command[:at], "--log_dir", str(folder), *command[at:]]
                output, errors = log, log
                screen = _Screen(folder, "*/attempt_*/0/std*.log", copy=None)
            else:
                output = stack.enter_context((folder / "stdout.log").open("wb"))
                errors = stack.enter_context((folder / "stderr.log").open("wb"))
                screen = _Screen(folder, "std*.log", copy=log)

        report_start = log.tell() if log else 0
        stop = stack.enter_context(_StopSignals(lambda: _file_stamp(run_file) != before))
        may_be_warm = launch.launcher == "python" and log is None
        process = start_warm(command, environment, say) if may_be_warm else None
        if process is None:
            if launch.launcher == "python":
                command = [command[0], "-P", "-m", "hfstack.cli.start", *command[1:]]
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=output,
                stderr=errors,
                # otherwise the terminal would send Ctrl-C to the recipe as well
                start_new_session=True,
                preexec_fn=_stop_when_the_parent_dies if sys.platform == "linux" else None,
            )

        stop.watch(process, launch.launcher)
        code = _wait_for_launcher(process, screen)
        stop.wait_for_workers()
        written = _read_run(run_file) if _file_stamp(run_file) != before else {}
        ending = Ending(code, bool(stop.received), written.get("status"), written.get("error_kind"))

        # A launcher turns the death by our signal into a failure of its own.
        killed = code < 0 or (code != 0 and run_file and launch.launcher != "python")
        if stop.received and not written and killed:
            say("stopped before the run began")
            return dataclasses.replace(ending, code=128 + stop.received[0])

        if launch.launcher == "python":
            if stop.received and code in (-signal.SIGINT, -signal.SIGTERM):
                return dataclasses.replace(ending, code=EXIT_PREEMPTED)
            # A shell reports death by another signal as 128 + its number.
            return dataclasses.replace(ending, code=128 - code if code < 0 else code)

        report = _read_from(launch.log_file, report_start) if launch.launcher == "torchrun" else ""
        result = outcome(code, ending.status, report, stopped=bool(stop.received))
        if screen and result == EXIT_MISTAKE and launch.launcher == "torchrun":
            screen.explain_failure(report)
            say(f"the launcher's report and the output of every process are in {launch.log_file}")

        return dataclasses.replace(ending, code=result)


def outcome(code: int, status: str | None, report: str, *, stopped: bool) -> int:
    """Return the exit code that the end of a launcher means.

    Args:
        code: what the launcher itself returned.
        status: of run.json, or None when this launch did not write it.
        report: what the launcher wrote.
        stopped: whether this launch was asked to stop.
    """
    if code == 0 or status == "finished":
        return 0
    if stopped:
        return EXIT_MISTAKE if status == "failed" else EXIT_PREEMPTED
    if status != "preempted":
        return EXIT_MISTAKE

    # When one process fails, torchrun sends SIGTERM to the others, and the first may then record
    # that it was preempted.
    cause = _root_cause(report)
    failed = cause is not None and cause[1] != EXIT_PREEMPTED
    return EXIT_MISTAKE if failed else EXIT_PREEMPTED


def _open_log(launch: Launch) -> io.BufferedRandom:
    """Open the log file to append to, and write the header of this launch."""
    assert launch.log_file is not None
    try:
        launch.log_file.parent.mkdir(parents=True, exist_ok=True)
        log = launch.log_file.open("a+b")
    except OSError as error:
        in_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "its folder is a file" if in_file else error.strerror
        raise ConfigError(
            f"the log {launch.log_file} cannot be written: {reason}; choose another --log_file"
        ) from None

    now = time.strftime("%Y-%m-%d %H:%M:%S")
    log.write(f"\n--- {now} + {redact(str(launch))}\n".encode())
    log.flush()
    return log


def _stop_when_the_parent_dies() -> None:
    """Have the child save and end when `hfstack run` itself is killed.

    Otherwise it would be left running.
    """
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


class _Screen:
    """Shows on the terminal what processes write to files, as the files grow."""

    def __init__(self, folder: Path, pattern: str, *, copy: io.BufferedRandom | None) -> None:
        self._folder, self._pattern, self._copy = folder, pattern, copy
        self._open: dict[Path, io.BufferedReader] = {}

    def update(self) -> None:
        """Show what came since the last call."""
        for path in sorted(self._folder.glob(self._pattern)):
            if path not in self._open:
                self._open[path] = path.open("rb")

        for path, stream in self._open.items():
            if new := stream.read():
                sink = sys.stdout if path.name == "stdout.log" else sys.stderr
                # The recipe continues although its reader has left.
                with contextlib.suppress(BrokenPipeError):
                    sink.buffer.write(new)
                    sink.flush()
                if self._copy:
                    self._copy.write(new)
                    self._copy.flush()

    def explain_failure(self, report: str) -> None:
        """Explain why another process failed, or why none started."""
        cause = _root_cause(report)
        if cause is None:
            lines = [line for line in report.splitlines() if line.strip()]
            say(f"the launcher failed: {lines[-1].strip() if lines else 'it wrote nothing'}")
            return

        rank, code, local_rank = cause
        files = {path.parent.name: path for path in self._folder.glob("*/attempt_*/*/stderr.log")}

        def read_stderr(local_rank: str) -> str:
            file = files.get(local_rank)
            return file.read_text(encoding="utf-8", errors="replace") if file else ""

        if code < 0:
            name = signal.Signals(-code).name
            guess = " (out of memory?)" if name == "SIGKILL" else ""
            say(f"process {rank} was killed by {name}{guess}")
            return

        # The first process is on the screen already; of another one its traceback is shown, unless
        # both failed alike.
        shown, wrote = read_stderr("0"), read_stderr(local_rank)
        if local_rank != "0" and wrote.strip() and wrote.splitlines()[-1] not in shown:
            start = max(0, wrote.rfind("Traceback (most recent call last)"))
            sys.stderr.write(wrote[start:])


def _root_cause(report: str) -> tuple[int, int, str] | None:
    """Return rank, exit code and local rank of the process that failed first.

    torchrun's report says so; None for another report.
    """
    found = re.search(
        r"Root Cause \(first observed failure\).*?"
        r"rank\s*: (\d+) \(local_rank: (\d+)\).*?exitcode\s*: (-?\d+)",
        report,
        re.DOTALL,
    )
    return (int(found[1]), int(found[3]), found[2]) if found else None


class _StopSignals:
    """Forwards the first Ctrl-C, SIGTERM or hang-up to the recipe, once.

    The caller then waits while the recipe saves. Launchers and schedulers send SIGTERM several
    times, so only a second Ctrl-C is taken for impatience.
    """

    def __init__(self, has_begun: Callable[[], bool]) -> None:
        self.received: list[int] = []
        self._has_begun = has_begun
        self._process: _Process | None = None
        self._launcher = "python"
        self._workers: list[int] = []

    def __enter__(self) -> "_StopSignals":
        self._previous = {name: signal.signal(name, self._handle) for name in _STOP_SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def watch(self, process: "_Process", launcher: str) -> None:
        """Set the process that signals are forwarded to, and what it is.

        accelerate would just die, so its child is signalled instead.
        """
        self._process = process
        self._launcher = launcher
        if self.received:
            self._forward(self.received[0])

    def wait_for_workers(self) -> None:
        """Wait for processes that outlive a launcher which was stopped from elsewhere."""
        while any(_is_running(worker) for worker in self._workers):
            time.sleep(_POLL_S)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Act on one signal: forward it, stop at once, or kill."""
        self.received.append(number)
        if self._process is None:
            return

        interrupts = self.received.count(signal.SIGINT)
        if len(self.received) == 1:
            self._forward(number)
        elif interrupts == 3:
            say("killing it")
            for pid in [self._process.pid, *self._workers]:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        elif interrupts == 2 and number == signal.SIGINT:
            say("Ctrl-C again: it stops at once, without saving; a third kills it")
            self._send(signal.SIGINT, to_workers=self._launcher != "python")

    def _forward(self, number: int) -> None:
        """Forward the first signal to the recipe, and say that it may save."""
        assert self._process is not None
        self._workers = _children(self._process.pid)

        # Before the run begins there is nothing to save, and Ctrl-C would end imports in a
        # traceback.
        begun = self._has_begun()
        sent = number if number == signal.SIGINT and begun else signal.SIGTERM
        self._send(sent, to_workers=self._launcher == "accelerate")
        if begun:
            say(f"{signal.Signals(number).name} handed to the recipe; waiting while it saves")

    def _send(self, number: int, *, to_workers: bool) -> None:
        """Send a signal to the workers of the launcher, or to the process itself."""
        assert self._process is not None
        receivers = [self._process.pid]
        if to_workers and self._workers:
            receivers = self._workers

        for pid in receivers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _children(pid: int) -> list[int]:
    """Return the processes that one process started; none where there is no /proc."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in children.split()]


def _is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie; False where there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The name before the last bracket may hold anything; the state follows it (proc(5)).
    return stat.rpartition(")")[2].split()[0] != "Z"


def _wait_for_launcher(process: "_Process", screen: _Screen | None) -> int:
    """Wait for the end of a process, showing its output meanwhile."""
    while screen is not None:
        code = process.poll()
        # After the poll, so that what was written before the end is not missed.
        screen.update()
        if code is not None:
            return code
        time.sleep(_POLL_S)
    return process.wait()


def _file_stamp(path: Path | None) -> tuple[int, int, int] | None:
    """Return what changes when a file is written again; None when there is no file."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ino, found.st_size) if found else None


def _read_run(path: Path | None) -> dict[str, Any]:
    """Return the content of run.json, or nothing while it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _read_from(path: Path | None, start: int) -> str:
    """Return the text from byte `start` on, at most the last MiB, where the report is."""
    assert path is not None
    with path.open("rb") as stream:
        stream.seek(max(start, path.stat().st_size - 2**20))
        return stream.read().decode("utf-8", errors="replace")


def say(text: str) -> None:
    """Write one line of hfstack's own to stderr."""
    # After a hang-up there is no terminal to write to.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"hfstack: {text}\n")
        sys.stderr.flush()
