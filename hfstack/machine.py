"""Describe this machine: its processor, and the addresses of its own.

Standard library only, because the command line reads it before anything heavy is imported.
"""

import os
import platform
import re
from pathlib import Path

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
"""Addresses that nobody else can reach."""


def count_cores() -> int:
    """Return how many cores this process may use."""
    # macOS and Windows do not say which cores a process may use.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """Return the model name of the processor, or its architecture where none is given."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()

    # ARM kernels list features but no model name.
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()
