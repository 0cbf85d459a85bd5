"""Compare the reading of local JSON lines with `datasets.load_dataset("json")`.

    python benchmarks/read_rows.py FILE.jsonl[.gz] ...

Without a file, 270000 rows are generated. Each measurement is a process of its own with one thread
and an empty cache; sides alternate, and the median of CPU seconds (user + system) and the peak
memory of `--repeats` runs are printed. `iterate` reads and checks every row; `load` also writes the
memory-mapped table; `again` is a second run.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = "the cat sat on a mat and went home when the sun was low over green hills".split()
SIDES = ("hfstack iterate", "hfstack load", "hfstack again", "datasets load", "datasets again")


def write_rows(path: Path, count: int) -> None:
    """Write rows of about 400 bytes: an integer, a text of 80 words, a label, a float."""
    generator = random.Random(0)
    with path.open("w") as out:
        for number in range(count):
            text = " ".join(generator.choices(WORDS, k=80))
            row = {"id": number, "text": text, "label": number % 3, "score": number / 7}
            out.write(json.dumps(row) + "\n")


def measure(side: str, path: str) -> None:
    """Run one side in this process and print {rows, cpu_s, wall_s, peak_mib}."""
    from datasets import load_dataset

    from hfstack.data.sources import Source, iterate_rows, load_mixture

    before, start = time.process_time(), time.perf_counter()
    if side == "hfstack iterate":
        rows = sum(1 for _ in iterate_rows([Source(path)]))
    elif side.startswith("hfstack"):
        rows = len(load_mixture([Source(path)]))
    else:
        rows = len(load_dataset("json", data_files=path, split="train"))

    figures = {
        "rows": rows,
        "cpu_s": time.process_time() - before,
        "wall_s": time.perf_counter() - start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures))


def run_side(side: str, path: Path, cache: str) -> dict[str, float]:
    """Return what `measure` prints in a process of its own."""
    environment = os.environ | {
        "HF_DATASETS_CACHE": cache,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, __file__, "--side", side, str(path)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(path: Path, repeats: int) -> None:
    """Print one table for a file."""
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for side in SIDES:
                results[side].append(run_side(side, path, cache))

    size_mb = path.stat().st_size / 1e6
    print(
        f"\n{path.name}: {results[SIDES[0]][0]['rows']:.0f} rows, {size_mb:.1f} MB as stored, "
        f"median of {repeats}"
    )

    print(f"{'':18}{'CPU s':>8}{'rows/s':>10}{'MB/s':>8}{'peak MiB':>10}")
    for side, runs in results.items():
        cpu_s = statistics.median(run["cpu_s"] for run in runs)
        peak_mib = statistics.median(run["peak_mib"] for run in runs)
        print(
            f"{side:18}{cpu_s:8.3f}{runs[0]['rows'] / cpu_s:10.0f}"
            f"{size_mb / cpu_s:8.1f}{peak_mib:10.0f}"
        )


def main() -> None:
    """Measure the files that are named, or one that is generated."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    # what `run_side` starts
    if arguments.side:
        measure(arguments.side, str(arguments.files[0]))
        return

    if arguments.files:
        for path in arguments.files:
            compare(path, arguments.repeats)
        return

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "synthetic.jsonl"
        write_rows(path, 270_000)
        compare(path, arguments.repeats)


if __name__ == "__main__":
    main()
