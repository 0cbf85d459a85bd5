"""Compare `clean` with one worker and with more, and its MinHash with datatrove's.

    python benchmarks/clean.py FILE.jsonl.gz [--workers 1 2] [--repeats 3]
    python benchmarks/clean.py FILE.jsonl.gz --datatrove runs/datatrove/bin/python

datatrove runs in an environment of its own, because it asks for other versions:

    python3.11 -m venv runs/datatrove
    runs/datatrove/bin/pip install 'datatrove[processing,io]==0.10.1' spacy

Sides run in turn, each in a process of its own; CPU seconds are those of the work alone, of all its
processes, without imports. "minhash" leaves out everything of `clean` but near duplicates, as
datatrove's four MinHash steps do (signatures, buckets, clusters, filter), reading and writing
included on both sides; datatrove has its defaults of 14 buckets of 8, hfstack its 12 of 10 of 128.
"""

# pyright: reportMissingImports=false
# datatrove is in another environment

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any


def measure_ours(path: Path, folder: Path, *, workers: int, minhash_alone: bool) -> int:
    """Clean a file in this process; return the bytes of its texts."""
    from hfstack.data.cleaning.dedup import duplicate_checks
    from hfstack.data.cleaning.pipeline import (
        CleaningReport,
        CleanText,
        clean_documents,
        clean_text,
    )
    from hfstack.data.cleaning.splits import write_documents
    from hfstack.data.sources import Source, iterate_rows
    from hfstack.recipe_settings import load_recipe

    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "clean.py")
    checks = [*([] if minhash_alone else recipe.FILTERS), *duplicate_checks(not minhash_alone)]
    report = CleaningReport()

    def keep(text: str) -> CleanText:
        return CleanText(text, frozenset(), {})

    documents = clean_documents(
        iterate_rows([Source(str(path))], columns={"text"}),
        checks,
        report,
        clean=keep if minhash_alone else clean_text,
        workers=workers,
    )
    begin(report)
    with closing(documents):
        write_documents(documents, report, folder, text_column="text")
    return report.bytes_in


def measure_datatrove(path: Path, folder: Path) -> int:
    """Run datatrove's MinHash steps in this process; return the bytes of the texts."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    def reader() -> Any:
        return JsonlReader(str(path.parent), glob_pattern=path.name)

    def run(name: str, steps: list[Any], tasks: int = 1) -> None:
        logs = str(folder / "logs" / name)
        LocalPipelineExecutor(steps, tasks=tasks, workers=1, logging_dir=logs).run()

    signatures = MinhashDedupSignature(str(folder / "signatures"))
    signatures.word_tokenizer.word_tokenize("load it")
    size = sum(len(document.text.encode()) for document in reader().run())

    begin(None)
    run("signatures", [reader(), signatures])
    buckets = MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"))
    run("buckets", [buckets], tasks=14)
    run("clusters", [MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"))])
    kept = [MinhashDedupFilter(str(folder / "remove")), JsonlWriter(str(folder / "kept"))]
    run("filter", [reader(), *kept])
    return size


_STARTED: list[float] = []


def begin(_: object) -> None:
    """Start the clock: what comes before are imports."""
    _STARTED[:] = [time.perf_counter(), *os.times()[:4], time.process_time()]


def measure(side: str, path: Path) -> None:
    """Run one side in this process and print its figures."""
    with tempfile.TemporaryDirectory() as folder:
        if side == "datatrove":
            size = measure_datatrove(path, Path(folder))
        else:
            kind, workers = side.split()
            alone = kind == "minhash"
            size = measure_ours(path, Path(folder), workers=int(workers), minhash_alone=alone)

    started, *times, own = _STARTED
    own_s = time.process_time() - own
    workers_s = sum(os.times()[2:4]) - sum(times[2:])
    print(
        json.dumps(
            {
                "megabytes": size / 1e6,
                "seconds": time.perf_counter() - started,
                "cpu_s": own_s + workers_s,
                "parent_cpu_s": own_s,
            }
        )
    )


def run_side(side: str, path: Path, python: str) -> dict[str, float]:
    """Return what `measure` prints in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [python, __file__, str(path), "--side", side]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure all sides in turn, and print and save the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--datatrove", help="Python of the environment that has datatrove")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    # what `run_side` starts
    if arguments.side:
        measure(arguments.side, arguments.file)
        return

    sides = [f"clean {workers}" for workers in arguments.workers]
    sides += [f"minhash {workers}" for workers in arguments.workers]
    sides += ["datatrove"] if arguments.datatrove else []
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(arguments.repeats):
        for side in sides:
            python = arguments.datatrove if side == "datatrove" else sys.executable
            results[side].append(run_side(side, arguments.file, python))

    figures: dict[str, dict[str, Any]] = {}
    for side, runs in results.items():
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        figures[side] = middle | {"runs": runs}

    from result_file import save

    print(write_table(figures))
    save("clean", vars(arguments), figures)


def write_table(figures: dict[str, dict[str, Any]]) -> str:
    """Return a row for each side."""
    from result_file import markdown_table

    rows = [
        [
            side,
            f"{one['cpu_s']:.2f}",
            f"{one['megabytes'] / one['cpu_s']:.2f}",
            f"{one['parent_cpu_s']:.2f}",
            f"{one['megabytes'] / one['seconds']:.2f}",
        ]
        for side, one in figures.items()
    ]
    parent = "of it in the process that reads and writes, CPU s"
    return markdown_table(["side", "CPU s", "MB per core-second", parent, "MB/s"], rows)


if __name__ == "__main__":
    main()
