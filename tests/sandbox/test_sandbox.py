"""Programs run bounded: forty and more hostile ones are contained, and none of them passes."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hfstack.errors import ConfigError
from hfstack.sandbox import run
from hfstack.sandbox.run import Limits, Outcome, Sandbox, open_sandbox, why_not_isolated
from tests.sandbox.hostile_programs import HOSTILE

SHORT = Limits(seconds=1.0, memory_bytes=256 << 20)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    if reason := why_not_isolated():
        pytest.skip(f"this system gives no namespaces: {reason}")
    return open_sandbox(SHORT, allow_root=True)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        yield server


def processes() -> set[int]:
    """The processes of this machine that a sandbox has started."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if b"sandbox/child.py" in line:
                found.add(int(folder.name))
    return found


def test_no_hostile_program_passes_and_none_leaves_a_trace(
    sandbox: Sandbox, listener: socket.socket, tmp_path: Path
) -> None:
    assert len(HOSTILE) >= 40
    canary = tmp_path / "canary"
    canary.write_text("whole")
    canary.chmod(0o666)
    tmp_path.chmod(0o777)
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))

    folders = set(Path(tempfile.gettempdir()).glob("hfstack-sandbox-*"))
    known = {"canary": canary, "port": listener.getsockname()[1], "pid": os.getpid()}
    programs = [fill(source, known) for source in HOSTILE.values()]
    try:
        outcomes = sandbox.run_all(programs)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert [name for name, one in zip(HOSTILE, outcomes, strict=True) if one.passed] == []
    assert all(one.reason for one in outcomes)
    assert canary.read_text() == "whole" and sorted(tmp_path.iterdir()) == [canary]
    assert not heard
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert not Path("/usr/lib/hfstack-canary").exists()
    assert set(Path(tempfile.gettempdir()).glob("hfstack-sandbox-*")) == folders

    # with process 1 of a namespace all of it ends, which takes the system a moment
    deadline = time.monotonic() + 10
    while processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes()


def fill(source: str, known: dict[str, object]) -> str:
    for name, value in known.items():
        source = source.replace(f"{{{name}}}", str(value))
    return source


def test_an_honest_program_passes_with_the_library_it_needs(sandbox: Sandbox) -> None:
    honest = "import math, random, collections, itertools, re, json\nassert math.isqrt(17) == 4"
    assert sandbox.run(honest).passed
    assert sandbox.run("open('x', 'w').write('mine')\nassert open('x').read() == 'mine'").passed
    assert sandbox.run("import os\nassert not dict(os.environ) and os.getuid() != 0").passed
    failed = sandbox.run("assert 1 == 2")
    assert not failed.passed and failed.reason == "AssertionError"
    assert sandbox.run("while True: pass").reason == "still running after 1 s"


def test_secrets_of_this_process_are_not_there(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    assert sandbox.run("import os\nassert 'HF_TOKEN' not in os.environ").passed
    outcome = sandbox.run("open('/proc/1/environ').read()")
    assert outcome.reason == "FileNotFoundError"


def test_root_and_weak_systems_are_refused_until_they_are_allowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hfstack_log: None
) -> None:
    refuses = "unshare: not permitted"
    with monkeypatch.context() as patched:
        patched.setattr(os, "getuid", lambda: 0)
        with pytest.raises(ConfigError, match="this process is root.*--allow_root true"):
            open_sandbox()
        patched.setattr(run, "why_not_isolated", lambda: refuses)
        with pytest.raises(ConfigError, match=r"not permitted.*--allow_weak_sandbox true"):
            open_sandbox(allow_root=True)

    monkeypatch.setattr(run, "why_not_isolated", lambda: refuses)
    monkeypatch.setattr(Sandbox, "run", lambda self, program: Outcome(passed=not self.isolated))
    weak = open_sandbox(SHORT, allow_root=True, allow_weak=True)
    assert not weak.isolated and "can reach the network" in caplog.text
    monkeypatch.setattr(Sandbox, "run", lambda self, program: Outcome(False, "PermissionError"))
    with pytest.raises(ConfigError, match="PermissionError.*must be able to read"):
        open_sandbox(SHORT, allow_root=True, allow_weak=True)


def test_without_namespaces_time_memory_and_what_is_left_behind_are_still_bounded() -> None:
    weak = Sandbox(isolated=False, limits=SHORT)
    if os.getuid() == 0 and not is_readable_by_all(Path(sys.base_prefix)):
        pytest.skip("another user cannot read this interpreter")
    assert weak.run("assert 1 + 1 == 2").passed
    names = ("endless loop", "ten gigabytes", "a daemon", "exits at once", "output without end")
    outcomes = weak.run_all([HOSTILE[name] for name in names])
    assert not any(one.passed for one in outcomes)
    assert not processes()


def is_readable_by_all(folder: Path) -> bool:
    command = ["setpriv", "--reuid", "65534", "--clear-groups", "test", "-r", str(folder)]
    return subprocess.run(command, check=False).returncode == 0
