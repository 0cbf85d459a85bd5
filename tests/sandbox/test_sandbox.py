"""Programs run bounded: a hundred hostile ones are contained, and none of them passes."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hfstack.errors import ConfigError
from hfstack.sandbox import run
from hfstack.sandbox.run import (
    Limits,
    Outcome,
    Program,
    Sandbox,
    open_sandbox,
    why_not_isolated,
)
from tests.sandbox.hostile_programs import FAKES, HOSTILE, MORE_HOSTILE

SHORT = Limits(seconds=1.0, memory_bytes=256 << 20)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    if reason := why_not_isolated():
        pytest.skip(f"this system gives no namespaces: {reason}")
    return open_sandbox(SHORT, allow_root=True)


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[list[socket.socket]]:
    """Of a port, of a name in no folder, and of a file in tmp_path, which everybody may reach."""
    with ExitStack() as closing:
        found = []
        for family, address in (
            (socket.AF_INET, ("127.0.0.1", 0)),
            (socket.AF_UNIX, f"\0hfstack-{tmp_path.name}"),
            (socket.AF_UNIX, str(tmp_path / "socket")),
        ):
            server = closing.enter_context(socket.socket(family))
            server.bind(address)
            server.listen()
            server.setblocking(False)
            found.append(server)
        (tmp_path / "socket").chmod(0o777)
        yield found


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


@pytest.mark.parametrize(
    "hostile", [HOSTILE, pytest.param(MORE_HOSTILE, marks=pytest.mark.slow)], ids=["first", "more"]
)
def test_no_hostile_program_passes_and_none_leaves_a_trace(
    sandbox: Sandbox,
    hostile: dict[str, str],
    listeners: list[socket.socket],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(hostile) >= 40
    monkeypatch.setenv("HFSTACK_SECRET", "secret")
    canary = tmp_path / "canary"
    canary.write_text("whole")
    canary.chmod(0o666)
    tmp_path.chmod(0o777)
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))

    folders = set(Path(tempfile.gettempdir()).glob("hfstack-sandbox-*"))
    known = {"canary": canary, "port": listeners[0].getsockname()[1], "pid": os.getpid()}
    known |= {"folder": tmp_path, "abstract": f"hfstack-{tmp_path.name}"}
    programs = [fill(source, known) for source in hostile.values()]
    try:
        outcomes = sandbox.run_all(programs)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert [name for name, one in zip(hostile, outcomes, strict=True) if one.passed] == []
    assert all(one.reason.isprintable() and one.reason for one in outcomes)
    assert canary.read_text() == "whole"
    assert sorted(tmp_path.iterdir()) == [canary, tmp_path / "socket"]
    assert not heard
    for server in listeners:
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not Path("/usr/lib/hfstack-canary").exists()
    assert set(Path(tempfile.gettempdir()).glob("hfstack-sandbox-*")) == folders

    # with process 1 of a namespace all of it ends, which takes the system a moment
    deadline = time.monotonic() + 10
    while processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes()


UNITTEST = """
import math, unittest
class Add(unittest.TestCase):
    def test_add(self):
        self.assertEqual(add(2, 3), 5)
        assert math.isclose(add(20, 30), 50)
found = unittest.TestResult()
unittest.defaultTestLoader.loadTestsFromTestCase(Add)(found)
assert found.wasSuccessful() and found.testsRun == 1 and not found.skipped
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert add(2, 3) == 5\nassert add(20, 30) == 50",
        *(
            pytest.param(text, marks=pytest.mark.slow)
            for text in (
                "for one, two in zip(map(add, [2, 20], [3, 30]), [5, 50]): assert one == two",
                "assert 5 in [add(2, 3)] and all(add(n, n) == 2 * n for n in range(5))",
                UNITTEST,
            )
        ),
    ],
    ids=["plain", "zip", "in", "unittest"],
)
def test_no_program_passes_by_what_it_does_to_its_tests(sandbox: Sandbox, test: str) -> None:
    honest = Program("def add(a, b): return a + b", test)
    *fakes, right = sandbox.run_all([*(Program(one, test) for one in FAKES.values()), honest])
    assert right.passed and len(FAKES) >= 40
    assert [name for name, one in zip(FAKES, fakes, strict=True) if one.passed] == []


@pytest.mark.parametrize(
    ("source", "test"),
    [
        ("def f(a): a.sort()", "a = [3, 1]\nf(a)\nassert a == [1, 3]"),
        ("def f(a): a['b'] = 1; return a", "a = {}\nassert f(a) is a and a == {'b': 1}"),
        ("n = 0\ndef f():\n    global n\n    n += 1", "f()\nf()\nassert n == 2"),
        ("def f(n): yield from range(n)", "assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6"),
        ("def f(g, x): return [g(y) for y in x]", "assert f(lambda y: -y, [1, 2]) == [-1, -2]"),
        (
            "def f(n): return n.x + (f(n.y) if n.y else 0)",
            """
class Node:
    def __init__(self, x, y=None): self.x, self.y = x, y
assert f(Node(1, Node(2))) == 3
""",
        ),
        (
            """
from dataclasses import dataclass
@dataclass(order=True)
class P:
    x: int
    def __add__(self, other): return P(self.x + other.x)
""",
            """
p = P(1) + P(2)
assert p == P(3) and p != P(4) and p < P(5) and isinstance(p, P) and not isinstance(3, P)
p.x = 9
assert p.x == 9 and repr(p) == 'P(x=9)'
""",
        ),
        (
            """
class E(ValueError): pass
def f(): raise E('no')
def g(): raise KeyError(1)
""",
            """
try: f()
except E as error: assert str(error) == 'no' and isinstance(error, ValueError)
else: assert False
try: g()
except KeyError as error: assert error.args == (1,)
else: assert False
""",
        ),
        (
            """
from collections import Counter, namedtuple
from fractions import Fraction
P = namedtuple('P', 'x y')
def f(): return P(1, 2), Counter('aab'), Fraction(1, 2), None, float('inf'), {1: {2}}
""",
            """
p, counts, half, *others = f()
assert p == (1, 2) and p.y == 2 and p[0] == 1 and counts == {'a': 2, 'b': 1} and half * 2 == 1
assert others == [None, float('inf'), {1: {2}}]
""",
        ),
        (
            "def f(): print('hello')",
            """
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()) as printed: f()
assert printed.getvalue() == 'hello\\n'
""",
        ),
        (
            "def f(n): return 0 if n == 0 else 1 + f(n - 1)",
            """
try: f(10 ** 6)
except RecursionError: pass
else: assert False
assert f(9) == 9
""",
        ),
    ],
)
def test_tests_reach_what_a_program_defines(sandbox: Sandbox, source: str, test: str) -> None:
    assert sandbox.run(Program(source, test)) == Outcome(True)


def test_a_name_is_that_of_the_preamble_then_of_python_then_of_the_program(
    sandbox: Sandbox,
) -> None:
    source = "def double(x): return 5\ndef sum(a, b): return a + b\ndef f(): return 2"
    preamble = "def double(x): return 2 * x"
    assert sandbox.run(Program(source, "assert double(f()) == 4", preamble)).passed
    assert sandbox.run(Program(source, "assert sum([1, 2]) == 3")).passed
    assert sandbox.run(Program(source, "assert sum(1, 2) == 3", entry_point="sum")).passed
    assert sandbox.run(Program(source, "assert g() == 3")).reason == "NameError"


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
