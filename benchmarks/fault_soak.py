"""Let the file system fail under training runs that are resumed, and look at what is left.

    python benchmarks/fault_soak.py                                  # 200 faults over two recipes
    python benchmarks/fault_soak.py --recipes pretrain_clm --faults 20 --seed 1

A run is killed half way. Each fault then strikes a copy of it that is resumed: an open, a read, a
write, a rename or an fsync in its folder fails with EIO, ESTALE, EMFILE or ENOSPC, once or from
then on (benchmarks/io_faults.c, which gcc compiles). Afterwards the copy is resumed once more
without a fault. What has to hold: no checkpoint that was whole is lost unless a newer one is whole;
run.json can be read; the second start ends with the weights and the log of an undisturbed run.
"""

import argparse
import errno
import math
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from kill_soak import (
    compare,
    kill_while_saving,
    load_and_warm_up,
    read_last_line,
    start,
    wait,
)
from soak_recipes import RECIPES, Flags, make_inputs, training_flags

from hfstack.errors import CheckpointError
from hfstack.runs.checkpoint_files import find_damage, list_checkpoints, step_of
from hfstack.runs.record import read_run

SOURCE = Path(__file__).with_name("io_faults.c")
# Calls, and about how many of them a resumed run makes in its folder.
CALLS = {"open": 200, "read": 300, "write": 150, "rename": 12, "fsync": 60}
ERRORS = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOSPC)


@dataclass(frozen=True)
class Fault:
    """One failure: which call, with which error, the how manieth, and whether it lasts."""

    call: str
    error: int
    nth: int
    lasts: bool

    def environment(self, folder: Path, mark: Path) -> dict[str, str]:
        """Return what tells the library to strike in a folder."""
        return {
            "IO_FAULT_CALL": self.call,
            "IO_FAULT_ERRNO": str(self.error),
            "IO_FAULT_PATH": f"{folder.name}/",
            "IO_FAULT_NTH": str(self.nth),
            "IO_FAULT_LASTS": str(int(self.lasts)),
            "IO_FAULT_MARK": str(mark),
        }

    def __str__(self) -> str:
        duration = "from then on" if self.lasts else "once"
        return f"{errno.errorcode[self.error]} at {self.call} {self.nth}, {duration}"


def main() -> int:
    """Run the soak; return 0 when nothing was lost and every run ended as undisturbed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--recipes", nargs="+", choices=list(RECIPES), default=["pretrain_clm", "sft"]
    )
    parser.add_argument("--faults", type=int, default=200, help="how many that strike, in all")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of a run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    folder = Path(tempfile.mkdtemp(prefix="fault-soak-"))
    preload(folder / "io_faults.so")
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    inputs = make_inputs(folder / "inputs")

    failed = 0
    for recipe in args.recipes:
        generator = random.Random(f"{args.seed} {recipe}")
        flags = training_flags(RECIPES[recipe](inputs), steps=args.steps)
        each = math.ceil(args.faults / len(args.recipes))
        failed += soak(recipe, flags, folder / recipe, each, generator)

    spent = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    print(f"{failed} faults lost something; {spent / 3600:.2f} CPU hours")
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


def preload(library: Path) -> None:
    """Compile the library that fails, and begin again with it in front of the C library."""
    if "io_faults" in os.environ.get("LD_PRELOAD", ""):
        return
    build = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(build, check=True)
    os.environ["LD_PRELOAD"] = str(library)
    os.execv(sys.executable, [sys.executable, *sys.argv])


def soak(recipe: str, flags: Flags, folder: Path, faults: int, generator: random.Random) -> int:
    """Strike the resumed run of a recipe until enough faults have; return how many lost some."""
    module = load_and_warm_up(recipe)
    folder.mkdir(parents=True)
    undisturbed, half = folder / "undisturbed", folder / "half"
    if wait(start(module, flags, undisturbed)) != 0:
        raise SystemExit(f"{recipe} fails undisturbed: {read_last_line(undisturbed)}")
    while len(list_checkpoints(half)) < 2:
        shutil.rmtree(half, ignore_errors=True)
        kill_while_saving(start(module, flags, half), half, generator)

    counts: Counter[str] = Counter()
    found: list[str] = []
    while counts["struck"] < faults:
        call = generator.choice(list(CALLS))
        error, nth = generator.choice(ERRORS), generator.randint(1, CALLS[call])
        fault = Fault(call, error, nth, generator.random() < 0.5)
        run = folder / f"run-{counts['tried']}"
        counts["tried"] += 1
        shutil.copytree(half, run)
        counts.update(strike(module, flags, run, fault))

        # what is left, and whether it can be gone on with
        problems = find_losses(half, run)
        if wait(start(module, flags | {"resume_from_checkpoint": "last"}, run)) != 0:
            problems.append(f"does not resume: {read_last_line(run)}")
        else:
            problems += compare(undisturbed, run, repeats=True)

        if problems:
            found.append(f"{fault}: {'; '.join(problems)} ({run})")
            print(f"  {found[-1]}", flush=True)
        else:
            shutil.rmtree(run)
            run.with_suffix(".log").unlink()
        # a soak that is stopped has said how far it came
        if counts["tried"] % 10 == 0:
            print(f"  {recipe}: {dict(counts)}, {len(found)} lost something", flush=True)

    print(
        f"{recipe}: {counts['struck']} of {counts['tried']} faults struck; then "
        f"{counts['finished']} runs finished all the same, {counts['line']} ended in one line and "
        f"{counts['traceback']} in a traceback; {len(found)} lost something",
        flush=True,
    )
    return len(found)


def strike(module: ModuleType, flags: Flags, run: Path, fault: Fault) -> list[str]:
    """Resume a run under a fault; return that it struck, and how the run ended."""
    mark = run.with_suffix(".mark")
    environment = fault.environment(run, mark)
    os.environ.update(environment)
    process = start(module, flags | {"resume_from_checkpoint": "last"}, run)
    for name in environment:
        del os.environ[name]

    code = wait(process)
    if not mark.exists():
        return []
    mark.unlink()
    log = run.with_suffix(".log").read_text(errors="replace")
    ending = "finished" if code == 0 else "traceback" if "Traceback" in log else "line"
    if ending == "traceback":
        print(f"  {fault}: {read_last_line(run)}", flush=True)
    return ["struck", ending]


def find_losses(before: Path, after: Path) -> list[str]:
    """Return which whole checkpoints are gone although no newer one is whole."""
    problems = []
    try:
        read_run(after)
    except CheckpointError as error:
        problems.append(str(error))

    whole = {step_of(path) for path in list_checkpoints(after) if is_whole(path)}
    for path in list_checkpoints(before):
        step = step_of(path)
        if is_whole(path) and step not in whole and not any(newer > step for newer in whole):
            problems.append(f"{path.name} is lost")
    return problems


def is_whole(path: Path) -> bool:
    """Return whether every file of a checkpoint is what its manifest says."""
    return find_damage(path, needs_manifest=True) is None


if __name__ == "__main__":
    sys.exit(main())
