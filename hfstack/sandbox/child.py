"""Run one untrusted program in a child: isolated, bounded, killed as a whole.

Started by `hfstack/sandbox/run.py` as a script of its own interpreter, which reads a JSON object
from its standard input and writes what became of the program to its standard output. Standard
library only, and nothing of hfstack: less is in the process that the program shares.

Three processes: this one waits with a deadline; its child is process 1 of a new process namespace,
whose end kills all that is in it; the child's child is the program.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

# linux/sched.h, sys/mount.h, linux/prctl.h, linux/capability.h
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    *(0x00020000, 0x04000000, 0x08000000),
    *(0x10000000, 0x20000000, 0x40000000),
)
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_PDEATHSIG, _SUBREAPER, _NO_NEW_PRIVS = 1, 36, 38
_CAPABILITIES_3 = 0x20080522

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin")
_WORK = "work"  # the program's own folder, inside its root
_WAIT_S = 0.005


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


def _run_program(program: str, report: int, passed: bytes) -> None:
    """Run the program; report that it came to its end, or how it did not."""
    os.environ.clear()
    # nobody reads what the program prints, however much it is
    nothing = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    try:
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})  # noqa: S102
    except BaseException as error:  # whatever it is, the program has not passed
        with suppress(BaseException):
            os.write(report, f"failed: {type(error).__name__}".encode()[:200])
        os._exit(1)
    os.write(report, passed)
    os._exit(0)


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
    return f"failed: exit status {os.WEXITSTATUS(status)} before the end"


def main() -> None:
    """Read what to run, run it, say what became of it."""
    asked = json.load(sys.stdin)
    if asked["namespaces"]:
        _enter_namespaces()
    _call("prctl", _SUBREAPER, 1, 0, 0, 0)
    # a report is a few bytes in a pipe, which nobody can fill up: it does not wait
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)

    first = os.fork()
    if first == 0:
        _be_first(asked, reader, writer)
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


def _be_first(asked: dict, reader: int, writer: int) -> None:
    """Be process 1 of the namespace: start the program, and end when it ends."""
    _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.close(reader)
    if asked["namespaces"]:
        folders = [name for name in _SYSTEM_FOLDERS if Path(name).is_dir()]
        _build_root(asked["root"], [*folders, *asked["readable"]], asked["disk_bytes"])
        os.chroot(asked["root"])
    os.chdir(f"/{_WORK}" if asked["namespaces"] else asked["root"])

    program = os.fork()
    if program == 0:
        _set_limits(asked["limits"])
        if asked["namespaces"] or os.getuid() == 0:
            _give_up_rights(asked["uid"])
        _run_program(asked["program"], writer, asked["passed"].encode())
    os.close(writer)
    _, status = os.waitpid(program, 0)
    if os.WIFSIGNALED(status):
        # process 1 cannot end by a signal of its own namespace
        os._exit(128 + os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
