"""Write what a benchmark measured, and on what, as one JSON file a run.

    save("clean", vars(arguments), figures)   # runs/benchmarks/clean-20261129-211500.json

The file holds the arguments, the figures, the commit (ending in `-dirty` when tracked files differ
from it), versions of the libraries, the machine, and its load before and after.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfstack.disk import atomic_write
from hfstack.runs.environment import describe_hardware, git_commit, library_versions

FOLDER = Path("runs/benchmarks")

_LOAD_AT_START = os.getloadavg()


def save(
    name: str, arguments: Mapping[str, Any], figures: Any, *, folder: Path | None = None
) -> Path:
    """Write one result, and say where.

    Args:
        name: of the benchmark.
        arguments: that change what is measured.
        figures: anything that JSON has.
        folder: where the file goes; `FOLDER` when None.
    """
    now = time.strftime("%Y%m%d-%H%M%S")
    path = (folder or FOLDER) / f"{name}-{now}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    commit = git_commit(Path(__file__).parent)

    result = {
        "benchmark": name,
        "time": now,
        "commit": commit,
        "dirty": commit is not None and commit.endswith("-dirty"),
        "arguments": dict(arguments),
        "versions": library_versions(),
        "machine": describe_hardware(),
        # of the last minute: a busy machine changes seconds more than CPU seconds
        "load": {"before": _LOAD_AT_START[0], "after": os.getloadavg()[0]},
        "figures": figures,
    }
    with atomic_write(path) as file:
        json.dump(result, file, indent=2, default=str)
    print(f"\nwrote {path}")
    return path
