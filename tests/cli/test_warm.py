"""The interpreter of which runs are forks: what a run sees, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hfstack.cli import main as cli
from hfstack.cli.warm import VARIABLE, WarmProcess, start_warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are tried on Linux alone")

SHOWS = """
import json, os, pathlib, signal, sys
handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler
pathlib.Path(sys.argv[1]).write_text(json.dumps({
    "argv": sys.argv, "name": __name__, "folder": os.getcwd(), "path": sys.path[0],
    "sigint": handler, "leads": os.getsid(0) == os.getpid(), "loaded": "yaml" in sys.modules,
    "columns": os.environ.get("COLUMNS"), "tty": sys.stdout.isatty(),
}))
print("printed")
sys.exit(7)
"""
SLEEPS = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(75)
"""


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    socket = tmp_path_factory.mktemp("warm") / "socket"
    return dict(os.environ) | {VARIABLE: str(socket)}


@pytest.fixture(scope="module")
def server(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """An interpreter that has imported what the report needs."""
    socket = environment[VARIABLE]
    command = [sys.executable, "-m", "hfstack.cli.warm_server", socket, "report"]
    with subprocess.Popen(command, env=environment) as process:
        wait_until(Path(socket).exists)
        assert Path(socket).stat().st_mode & 0o077 == 0  # nobody else may have a run started
        yield process
        process.kill()


@pytest.fixture
def start(
    server: subprocess.Popen[bytes], environment: dict[str, str], tmp_path: Path
) -> Callable[..., Any]:
    """Start a program in it, with the file that the program writes to as its argument."""

    def call(program: str, **changed: str) -> tuple[WarmProcess | None, Path, list[str]]:
        (tmp_path / "program.py").write_text(program)
        said: list[str] = []
        command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "seen")]
        process = start_warm(command, environment | changed, said.append)
        return process, tmp_path / "seen", said

    return call


def test_a_run_sees_what_a_new_interpreter_shows(
    start: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    process, seen, said = start(SHOWS, COLUMNS="72")
    assert process.wait() == process.poll() == 7
    assert said == [] and capfd.readouterr().out == "printed\n"

    found = json.loads(seen.read_text())
    program = str(tmp_path / "program.py")
    assert found == {
        "argv": [program, str(seen)],
        "name": "__main__",
        "folder": str(Path.cwd()),
        "path": str(tmp_path),
        "sigint": True,
        "leads": True,
        "loaded": True,
        "columns": "72",
        "tty": False,
    }


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 75), (signal.SIGKILL, -9), (signal.SIGTERM, -15)]
)
def test_signals_reach_the_run(start: Callable[..., Any], number: int, code: int) -> None:
    process, seen, _ = start(SLEEPS)
    wait_until(seen.exists)
    assert process.poll() is None
    os.kill(process.pid, number)
    assert process.wait() == code


def test_another_environment_is_declined(start: Callable[..., Any]) -> None:
    """What libraries read while they are imported would be of the wrong environment."""
    process, seen, said = start(SHOWS, OMP_NUM_THREADS="7")
    assert process is None and not seen.exists()
    assert said == ["the warm interpreter is not used: the environment differs: OMP_NUM_THREADS"]


def test_no_server_means_a_new_interpreter(tmp_path: Path) -> None:
    command = [sys.executable, "x.py"]
    assert start_warm(command, {}, print) is None
    assert start_warm(command, {VARIABLE: str(tmp_path / "gone")}, print) is None


def test_a_run_ends_with_its_server(tmp_path: Path, environment: dict[str, str]) -> None:
    """Killed, the server ends its run with SIGTERM, so that it saves."""
    own = environment | {VARIABLE: str(tmp_path / "socket")}
    command = [sys.executable, "-m", "hfstack.cli.warm_server", own[VARIABLE]]
    (tmp_path / "program.py").write_text(SLEEPS)

    with subprocess.Popen(command, env=own) as server:
        wait_until(Path(own[VARIABLE]).exists)
        program = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "seen")]
        run = start_warm(program, own, print)
        assert run is not None
        wait_until((tmp_path / "seen").exists)
        server.kill()
        assert run.wait() == -signal.SIGTERM
        assert not Path(f"/proc/{run.pid}").exists()


def test_the_verb_refuses_in_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["warm", "socket"]) == 1
    assert cli.main(["warm", "socket", "nothing"]) == 1
    assert capfd.readouterr().err.count("\n") == 2

    monkeypatch.setattr(cli, "cannot_be_warm", lambda: "a GPU's driver does not survive a fork")
    assert cli.main(["warm", "socket", "report"]) == 0
    assert "a GPU's driver does not survive a fork" in capfd.readouterr().err
