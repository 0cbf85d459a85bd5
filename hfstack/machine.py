"""Describe this machine: its processor, and the addresses of its own.

Standard library only, because the command line reads it before anything heavy is imported.
"""

import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path

# by which a user says how threads wait
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# of a core; below it no thread of ours is kept waiting for long
_OTHERS_SHARE = 0.5

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
"""Addresses that nobody else can reach."""


def count_cores() -> int:
    """Return how many cores this process may use, by affinity and by quota."""
    quota = core_quota()
    return visible_cores() if quota is None else max(1, min(visible_cores(), int(quota)))


def visible_cores() -> int:
    """Return how many cores this process may run on, whatever its quota."""
    # macOS and Windows do not say which cores a process may use.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def core_quota(groups: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the cores of a container's quota (cgroups v2 or v1), None without one."""
    try:
        if (groups / "cpu.max").exists():
            limit, period = (groups / "cpu.max").read_text().split()
        else:
            limit = (groups / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (groups / "cpu/cpu.cfs_period_us").read_text()
        return None if limit in ("max", "-1") else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def free_cores(seconds: float = 0.1) -> float | None:
    """Return how many cores are idle now, None where nothing says so."""

    def read() -> tuple[int, int]:
        numbers = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
        # user nice system idle iowait irq softirq steal; guests are in user already (proc(5))
        return sum(numbers[3:5]), sum(numbers[:8])

    try:
        idle, total = read()
        time.sleep(seconds)
        later_idle, later_total = read()
    except (OSError, ValueError, IndexError):
        return None
    spent = later_total - total
    return (os.cpu_count() or 1) * (later_idle - idle) / spent if spent else None


def choose_threads(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what OpenMP should read, for this machine as it is now.

    As many threads as the container's quota has cores. Threads that wait for each other spin, which
    is fastest on an idle machine; where others compute, each spins away time that the thread it
    waits for would need, so they sleep early. Nothing that the user has set is changed.

    Args:
        environment: of the process that will import torch.

    Returns:
        Variables of both runtimes: GNU's (torch's on Linux), and LLVM's and Intel's (on macOS,
        Windows and in conda).
    """
    chosen, cores = dict[str, str](), count_cores()
    if "OMP_NUM_THREADS" not in environment and cores < visible_cores():
        chosen["OMP_NUM_THREADS"] = str(cores)

    alone = environment.get("OMP_NUM_THREADS", str(cores)) == "1"
    if alone or any(name in environment for name in _WAITING):
        return chosen
    free = free_cores()
    if free is not None and free < cores - _OTHERS_SHARE:
        chosen |= {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
    return chosen


def describe_threads(environment: Mapping[str, str]) -> str | None:
    """Return what is set for how threads wait; None where nothing is."""
    chosen = [f"{name}={environment[name]}" for name in _WAITING if name in environment]
    if not chosen:
        return None
    threads = environment.get("OMP_NUM_THREADS", str(count_cores()))
    return f"{threads} threads; how they wait for each other: {', '.join(chosen)}"


def processor_name() -> str:
    """Return the model name of the processor, or its architecture where none is given."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()

    # ARM kernels list features but no model name.
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()
