"""Run the matrix of families, and write docs/models.md of its results.

    python -m tests.zoo.matrix results.jsonl --properties     # what probes find: minutes
    python -m tests.zoo.matrix results.jsonl                  # every recipe as well: an hour of CPU
    python -m tests.zoo.matrix results.jsonl --kind encoder --families bert --cells tag answer
    python -m tests.zoo.matrix results.jsonl --table docs/models.md

What is in the file of results is not run again.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hfstack.runs.stop_signals import StopSignals
from tests.zoo.cells import CELLS, Cell, run_cell
from tests.zoo.families import CAUSAL, KINDS, build, families, zoo_tokenizer
from tests.zoo.properties import PROPERTIES, measure
from tests.zoo.table import write_table
from tests.zoo.texts import write_rows

BUILD = "build"


def main() -> None:
    """Run what is missing; each result is written as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--kind", default=CAUSAL, choices=list(KINDS))
    parser.add_argument("--families", nargs="*", default=None)
    parser.add_argument("--cells", nargs="*", default=None)
    parser.add_argument("--properties", action="store_true", help="no recipes")
    parser.add_argument("--models", type=Path, help="a folder that keeps the models")
    parser.add_argument("--table", type=Path, help="write the table of the results, run nothing")
    args = parser.parse_args()
    if args.table:
        args.table.write_text(write_table(read_cells(args.results)), encoding="utf-8")
        return

    warnings.filterwarnings("ignore")
    names = [] if args.properties else args.cells or list(CELLS[args.kind])
    with ends_at_sigterm(), tempfile.TemporaryDirectory() as scratch:
        rows = write_rows(Path(scratch))
        models = args.models or Path(scratch) / "models"
        for family in args.families or families(args.kind):
            run_family(args.kind, family, names, args.results, models / args.kind, rows=rows)


@contextmanager
def ends_at_sigterm() -> Iterator[None]:
    """End this process at SIGTERM or Ctrl-C; a recipe would save, and the next cell would begin."""

    def end(signum: int, _: Any) -> None:
        sys.exit(128 + signum)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with patch.object(StopSignals, "install", lambda _: None):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_family(
    kind: str, family: str, names: list[str], results: Path, models: Path, *, rows: dict[str, Path]
) -> None:
    """Build a family, and append what is missing of it to the results."""
    done = {cell.name for cell in read_cells(results) if (cell.kind, cell.family) == (kind, family)}
    missing = [name for name in names if name not in done]
    unmeasured = not set(PROPERTIES[kind]) <= done
    if BUILD in done or not (missing or unmeasured):
        return

    with results.open("a", encoding="utf-8") as file:

        def keep(cell: Cell, began: float) -> None:
            cell.figures["cpu_s"] = round(time.process_time() - began, 2)
            file.write(cell.to_json() + "\n")
            file.flush()
            print(f"{family:24} {cell.name:12} {cell.state:10} {cell.reason[:150]}", flush=True)

        began, model = time.process_time(), models / family
        saved = (model / "model.safetensors").is_file()
        reason = None if saved else build(family, model, zoo_tokenizer(), kind)
        if reason is not None:
            keep(Cell(kind, family, BUILD, "refused", reason), began)
            return
        if unmeasured:
            began = time.process_time()
            for name, (state, figure) in measure(kind, family, model):
                keep(Cell(kind, family, name, state, figure), began)
                began = time.process_time()
        for name in missing:
            began = time.process_time()
            keep(run_cell(kind, family, name, model, rows), began)


def read_cells(results: Path) -> list[Cell]:
    """Return the cells of a file of results, the last one of each kind."""
    if not results.is_file():
        return []
    lines = results.read_text(encoding="utf-8").splitlines()
    cells = [Cell(**json.loads(line)) for line in lines if line.strip()]
    return list({(cell.kind, cell.family, cell.name): cell for cell in cells}.values())


if __name__ == "__main__":
    main()
