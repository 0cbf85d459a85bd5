"""Run one untrusted program in a child: isolated, bounded, killed as a whole.

Started by `hfstack/sandbox/run.py` as a script of its own interpreter, which reads the program and
its tests from its standard input and writes what became of them to its standard output. Standard
library only, and nothing of hfstack but `calls.py` beside it: less is in the process that the
program shares.

Four processes: this one waits with a deadline; its child is process 1 of a new process namespace,
whose end kills all that is in it; its children are the program, and the tests, which nobody has
read before the program is a process of its own.
"""

import ctypes
import io
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from calls import Line, Lost, Names  # pyright: ignore[reportMissingImports]

del sys.path[0]

# linux/sched.h, sys/mount.h, linux/prctl.h, linux/capability.h
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    *(0x00020000, 0x04000000, 0x08000000),
    *(0x10000000, 0x20000000, 0x40000000),
)
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_PDEATHSIG, _DUMPABLE, _SUBREAPER, _NO_NEW_PRIVS = 1, 4, 36, 38
_CAPABILITIES_3 = 0x20080522

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin")
_WORK = "work"  # the program's own folder, inside its root
_WAIT_S = 0.005
_LOST = 99  # exit status of tests whose program has gone
_LOST_S = 1.0


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library; raise OSError where it fails."""
    if getattr(_LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), options.encode())


def _enter_namespaces() -> None:
    """Leave the network, the processes, the mounts and the IPC of the system."""
    uid, gid = os.getuid(), os.getgid()
    flags = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
    if uid == 0:
        _call("unshare", flags)
    else:
        _call("unshare", flags | _NEWUSER)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            Path(f"/proc/self/{name}").write_text(text)
    _mount("none", "/", None, _REC | _PRIVATE)
    for name in ("shmmni", "msgmni"):
        # what lies in them counts to no process, and so to no limit; old kernels ask for root
        with suppress(PermissionError):
            Path(f"/proc/sys/kernel/{name}").write_text("0")


def _build_root(root: str, readable: list[str], size: int) -> None:
    """Mount an empty, bounded root, with the interpreter in it to read."""
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, f"size={size},nr_inodes=1000,mode=755")
    for folder in readable:
        target = f"{root}{folder}"
        Path(target).mkdir(parents=True, exist_ok=True)
        _mount(folder, target, None, _BIND)
        # what the system has locked stays locked: its own flags have to be named again
        kept = os.statvfs(target).f_flag & 0b1111
        times = os.statvfs(target).f_flag & (1024 | 2048)
        relative = 1 << 21 if os.statvfs(target).f_flag & 4096 else 0
        flags = _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | kept | times | relative
        _mount("none", target, None, flags)
    for folder in (_WORK, "tmp"):
        Path(root, folder).mkdir()
        Path(root, folder).chmod(0o777)
    _mount("/dev/null", _touch(f"{root}/dev/null"), None, _BIND)


def _touch(path: str) -> str:
    """Make an empty file, which something is then mounted on."""
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).touch()
    return path


def _give_up_rights(uid: int) -> None:
    """Become a user without any rights, for good."""
    _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())


def _set_limits(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name}")
        _, most = resource.getrlimit(number)
        bound = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(number, (bound, bound))


def _be_program(source: str, reader: int, writer: int) -> None:
    """Run the program, and let the tests use what it defines."""
    os.environ.clear()
    _close_standard_files()
    # what it prints goes to tests that look at it; what it writes past Python, to nobody
    sys.stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    names: dict[str, object] = {"__name__": "__main__"}

    def load(_: object) -> None:
        exec(compile(source, "program", "exec"), names)  # noqa: S102

    def find(name: str) -> tuple[bool, object]:
        return name in names, names.get(name)

    line = Line(open(reader, "rb"), open(writer, "wb"), {"load": load, "name": find})  # noqa: SIM115
    try:
        line.serve()
    finally:
        os._exit(0)


def _be_tests(reader: int, writer: int, report: int) -> None:
    """Run the tests of the program, and report what became of them."""
    content = b""
    while part := os.read(0, 1 << 16):
        content += part
    tests = json.loads(content)
    _close_standard_files()
    line = Line(open(reader, "rb"), open(writer, "wb"))  # noqa: SIM115
    try:
        line.ask("load", None)
        names = Names(line, tests["entry_point"])
        for part in ("preamble", "test"):
            exec(compile(tests[part], part, "exec"), names)  # noqa: S102
    except Lost:
        os._exit(_LOST)
    except BaseException as error:  # whatever it is, the program has not passed
        name = type(error).__name__
        # the program may have chosen it, and it is read in a terminal
        shown = name if name.isascii() and name.isidentifier() else "an exception"
        os.write(report, f"failed: {shown}".encode()[:200])
        os._exit(1)
    os.write(report, b"passed")
    os._exit(0)


def _close_standard_files() -> None:
    """Have nothing to read, and nobody who reads what is written, however much it is."""
    nothing = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)


def _kill_descendants() -> None:
    """Kill all that came of this process; orphans have become its children."""
    for _ in range(100):
        children = [pid for pid, parent in _processes() if parent == os.getpid()]
        if not children:
            return
        for pid in children:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with suppress(OSError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(_WAIT_S)


def _processes() -> list[tuple[int, int]]:
    """Return the processes of the system, each with its parent."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                after_name = (folder / "stat").read_text(errors="replace").rpartition(")")[2]
                found.append((int(folder.name), int(after_name.split()[1])))
    return found


def _wait_for_child(pid: int, seconds: float) -> int | None:
    """Return the status of a child that ends in time, else None."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(_WAIT_S)
    return None


def _describe_exit(status: int | None, seconds: float) -> str:
    """Return how a program ended that has reported nothing."""
    if status is None:
        return f"failed: still running after {seconds:g} s"
    if os.WIFSIGNALED(status):
        return f"failed: killed by signal {os.WTERMSIG(status)}"
    if os.WEXITSTATUS(status) == _LOST:
        return "failed: does not answer its tests"
    return f"failed: exit status {os.WEXITSTATUS(status)} before the end"


def main() -> None:
    """Read what to run, run it, say what became of it."""
    asked = _read_settings()
    if asked["namespaces"]:
        _enter_namespaces()
    _call("prctl", _SUBREAPER, 1, 0, 0, 0)
    # a report is a few bytes in a pipe, which only the tests write to: it does not wait
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    first = os.fork()
    if first == 0:
        os.close(reader)
        _be_first(asked, writer)
    os.close(writer)
    status = _wait_for_child(first, asked["seconds"])
    with suppress(OSError):
        os.kill(first, signal.SIGKILL)
    _kill_descendants()

    said = b""
    with suppress(BlockingIOError):
        said = os.read(reader, 1000)
    text = said.decode(errors="replace") or _describe_exit(status, asked["seconds"])
    os.write(1, text.encode())


def _read_settings() -> dict:
    """Read the settings and the program; leave the tests behind them unread.

    Unbuffered, since what this process has read its children have in memory too.
    """
    head = b""
    while not head.endswith(b"\n"):
        head += os.read(0, 1)
    content = b""
    while len(content) < int(head):
        content += os.read(0, int(head) - len(content))
    return json.loads(content)


def _be_first(asked: dict, report: int) -> None:
    """Be process 1 of the namespace: start the program and its tests, wait, end."""
    _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if asked["namespaces"]:
        folders = [name for name in _SYSTEM_FOLDERS if Path(name).is_dir()]
        _build_root(asked["root"], [*folders, *asked["readable"]], asked["disk_bytes"])
        os.chroot(asked["root"])
    os.chdir(f"/{_WORK}" if asked["namespaces"] else asked["root"])
    gives_up = asked["namespaces"] or os.getuid() == 0
    from_program, to_tests = os.pipe()
    from_tests, to_program = os.pipe()

    program = os.fork()
    if program == 0:
        for number in (report, from_program, to_program):
            os.close(number)
        _set_limits(asked["limits"])
        if gives_up:
            _give_up_rights(asked["uid"])
        _be_program(asked["program"], from_tests, to_tests)
    for number in (from_tests, to_tests):
        os.close(number)

    tests = os.fork()
    if tests == 0:
        _set_limits(asked["limits"])
        if gives_up:
            _give_up_rights(asked["tests_uid"])
        # where both are one user, the program may not read or change the memory of the tests
        _call("prctl", _DUMPABLE, 0, 0, 0, 0)
        _be_tests(from_program, to_program, report)
    for number in (report, from_program, to_program):
        os.close(number)
    os._exit(_wait_for_both(program, tests))


def _wait_for_both(program: int, tests: int) -> int:
    """Return the exit status of the tests, or where they lost it that of the program."""
    ended: dict[int, int] = {}
    until = float("inf")
    while tests not in ended:
        with suppress(ChildProcessError):
            pid, status = os.waitpid(-1, os.WNOHANG)
            ended |= {pid: status} if pid else {}
        # what the program has started may hold its pipes open
        if program in ended:
            until = min(until, time.monotonic() + _LOST_S)
        if time.monotonic() > until:
            return _as_exit(ended[program])
        time.sleep(_WAIT_S)

    if _as_exit(ended[tests]) != _LOST:
        return _as_exit(ended[tests])
    status = ended[program] if program in ended else _wait_for_child(program, _LOST_S)
    return _LOST if status is None else _as_exit(status)


def _as_exit(status: int) -> int:
    """Return a status to exit with: process 1 cannot end by a signal of its namespace."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


if __name__ == "__main__":
    main()
