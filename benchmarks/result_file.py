"""Write what a benchmark measured, and on what, as one JSON file a run, and the tables of the docs.

    save("clean", vars(arguments), figures)   # runs/benchmarks/clean-20261129-211500.json

The file holds the arguments, the figures, the commit (ending in `-dirty` when tracked files differ
from it), versions of the libraries, the machine, and its load before and after.

A run that a page shows is kept in benchmarks/results. The page marks where its table goes:

    <!-- table of benchmarks/results/clean.json -->
    <!-- end of table -->

    python benchmarks/result_file.py           # writes the tables, by write_table of the benchmark
    python benchmarks/result_file.py --check   # exit code 1 if a page has another table
"""

import argparse
import importlib
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfstack.disk import atomic_write
from hfstack.runs.environment import describe_hardware, git_commit, library_versions

FOLDER = Path("runs/benchmarks")

_ROOT = Path(__file__).resolve().parents[1]
_TABLE = re.compile(
    r"(<!-- table of benchmarks/results/(\w+)\.json -->\n).*?(<!-- end of table -->)", re.DOTALL
)

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


def markdown_table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, one line a row."""
    lines = [f"| {' | '.join(cells)} |\n" for cells in (heads, *rows)]
    lines.insert(1, f"|{'---|' * len(heads)}\n")
    return "".join(lines)


def describe(result: Mapping[str, Any]) -> str:
    """Return a sentence on when, where and of which code a result was measured."""
    when = time.strftime("%d %B %Y", time.strptime(result["time"], "%Y%m%d-%H%M%S")).lstrip("0")
    machine, load, versions = result["machine"], result["load"], result["versions"]
    on = ", ".join(machine["accelerators"]) or f"{machine['cpu']}, {machine['cores']} cores"
    commit = str(result["commit"])[:9] + (", changed" if result["dirty"] else "")
    used = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions
    )
    line = (
        f"{when}, {on}, load {load['before']:.1f} before and {load['after']:.1f} after; {used}; "
        f"commit {commit}."
    )
    return textwrap.fill(line, 100, break_on_hyphens=False)


def with_tables(page: str) -> str:
    """Return a page with its tables made again from the results that it names."""

    def table(found: re.Match[str]) -> str:
        path = _ROOT / "benchmarks" / "results" / f"{found[2]}.json"
        result = json.loads(path.read_text(encoding="utf-8"))
        module: Any = importlib.import_module(result["benchmark"])
        return f"{found[1]}{module.write_table(result['figures'])}\n{describe(result)}\n{found[3]}"

    return _TABLE.sub(table, page)


def main() -> None:
    """Write the tables of all pages, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()

    stale = []
    for path in sorted((_ROOT / "docs").rglob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = with_tables(before)
        if after != before:
            stale.append(str(path.relative_to(_ROOT)))
            if not arguments.check:
                with atomic_write(path) as file:
                    file.write(after)

    if stale and arguments.check:
        sys.exit(f"tables differ from benchmarks/results in {', '.join(stale)}: make docs")


if __name__ == "__main__":
    main()
