"""Kill training runs with SIGKILL, resume them, and compare with undisturbed ones.

    python benchmarks/kill_soak.py                                    # 60 kills over all recipes
    python benchmarks/kill_soak.py --recipes sft --kills 15 --seed 1
    python benchmarks/kill_soak.py --recipes pretrain_clm --processes 2   # both are killed at once

Each recipe trains a tiny model with dropout, shuffling, gradient accumulation, evaluations and a
checkpoint every second step, first undisturbed. Then the same command is started again and again
with `--resume_from_checkpoint last` and killed, half of the times at any moment and half while a
checkpoint is being written, until it has finished. The final weights must be equal in every bit,
and the log must hold the same losses, gradient norms, learning rates and evaluations at the same
steps, each once.

Importing the libraries takes many times longer than such a run, so they are imported once: every
start is a fork of that process, which then calls the recipe as its command line would. SIGKILL ends
it as it would end any process. What the page cache of the machine holds survives, so a power
failure is not part of this.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

from accelerate.state import AcceleratorState
from safetensors import safe_open
from soak_recipes import RECIPES, Flags, make_inputs, training_flags

from hfstack.config import command_line, parse
from hfstack.recipe_settings import load_recipe, settings_classes
from hfstack.runs.manifest import MANIFEST

ROOT = Path(__file__).parent.parent
# Clocks, and what is computed from them; everything else in the log must be equal.
CLOCKS = re.compile(r"(_runtime|_per_second|tokens_per_s|mfu|step_time)$|^time/")


def main() -> int:
    """Run the soak; return 0 when every run ended as it would have undisturbed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--kills", type=int, default=60, help="how many at least, over all recipes")
    parser.add_argument("--kills_per_run", type=int, default=5)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1, help="of each run")
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument(
        "--folder", type=Path, help="where to work; kept afterwards (default: a temporary one)"
    )
    args = parser.parse_args()

    folder = args.folder or Path(tempfile.mkdtemp(prefix="kill-soak-"))
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    inputs = make_inputs(folder / "inputs")

    soaks = []
    kills = math.ceil(args.kills / len(args.recipes))
    began_s = processor_s()
    try:
        for recipe in args.recipes:
            generator = random.Random(f"{args.seed} {recipe}")
            flags = training_flags(
                RECIPES[recipe](inputs), steps=args.steps, processes=args.processes
            )
            soaks.append(Soak(recipe, flags, folder / recipe, generator))
            soaks[-1].run_undisturbed()

        # By turns, so that a soak that is stopped has killed runs of every recipe.
        while waiting := [soak for soak in soaks if soak.kills < kills]:
            for soak in waiting:
                soak.run_killed(min(args.kills_per_run, kills - soak.kills))
                print(f"  {soak}", flush=True)
    except KeyboardInterrupt:
        print("stopped", flush=True)

    print(f"{'recipe':<14}{'runs':>6}{'kills':>7}{'saving':>8}{'torn':>6}  outcome")
    for soak in soaks:
        print(soak)
    total = sum(soak.kills for soak in soaks)
    torn = sum(soak.torn for soak in soaks)
    failed = sum(len(soak.differences) for soak in soaks)
    print(f"{(processor_s() - began_s) / 3600:.2f} CPU hours")
    print(f"{total} kills, {torn} torn checkpoints set aside, {failed} runs that differ")

    if args.folder is None and not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


def processor_s() -> float:
    """Return the seconds of processor time of this process and of those it waited for."""
    return sum(os.times()[:4])


@dataclass
class Soak:
    """The killed runs of one recipe, and what they are compared with."""

    recipe: str
    flags: Flags
    folder: Path
    generator: random.Random
    runs: int = 0
    kills: int = 0
    while_saving: int = 0
    torn: int = 0
    differences: list[str] = field(default_factory=list)
    module: ModuleType = field(init=False)
    duration_s: float = field(init=False)

    @property
    def undisturbed(self) -> Path:
        """The folder of the run that nothing disturbs."""
        return self.folder / "undisturbed"

    def run_undisturbed(self) -> None:
        """Import the recipe, and run it once from beginning to end."""
        self.module = load_and_warm_up(self.recipe)
        self.folder.mkdir(parents=True)
        began = time.monotonic()
        if wait(start(self.module, self.flags, self.undisturbed)) != 0:
            raise SystemExit(f"{self.recipe} fails undisturbed: {read_last_line(self.undisturbed)}")
        self.duration_s = time.monotonic() - began

    def run_killed(self, kills: int) -> None:
        """Start a run, kill it up to `kills` times, let it finish, and compare."""
        killed = self.folder / f"killed-{self.runs}"
        log = killed.with_suffix(".log")
        self.kill_and_resume(killed, kills)

        self.runs += 1
        self.torn += log.read_text(errors="replace").count(" is torn: ")
        found = compare(self.undisturbed, killed)
        self.differences += [f"run {self.runs}: {difference}" for difference in found]
        if not self.differences:
            shutil.rmtree(killed)
            log.unlink()

    def kill_and_resume(self, out: Path, kills: int) -> None:
        """Start a run, kill it `kills` times, and let it finish."""
        for attempt in range(kills + 1):
            resume: Flags = {"resume_from_checkpoint": "last"} if attempt else {}
            process = start(self.module, self.flags | resume, out)

            # The last start is left alone.
            if attempt == kills:
                if wait(process) != 0:
                    self.differences.append(f"ended with an error: {read_last_line(out)}")
                return

            if self.generator.random() < 0.5:
                was_killed = kill_while_saving(process, out, self.generator)
                self.while_saving += was_killed
            else:
                was_killed = kill_after(process, self.generator.uniform(0, self.duration_s))

            # It may have finished before; only one that got a signal is waited for already.
            self.kills += was_killed
            if not was_killed:
                with contextlib.suppress(ChildProcessError):
                    wait(process)
                return

    def __str__(self) -> str:
        result = "; ".join(self.differences) or "weights and log equal"
        return (
            f"{self.recipe:<14}{self.runs:>6}{self.kills:>7}{self.while_saving:>8}"
            f"{self.torn:>6}  {result}"
        )


def kill_after(process: int, seconds: float) -> bool:
    """Kill a process after some seconds; return whether it was still there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ended(process):
            return False
        time.sleep(0.005)
    return kill(process)


def kill_while_saving(process: int, out: Path, generator: random.Random) -> bool:
    """Kill a process while it writes a checkpoint; return whether it was still there.

    It is killed after some of the time that a save takes.
    """
    known = {path.name for path in out.glob("checkpoint-*")}
    saves = generator.randint(1, 4)  # which of the saves to come

    while not ended(process):
        fresh = [path for path in out.glob("checkpoint-*") if path.name not in known]
        if fresh:
            known |= {path.name for path in fresh}
            saves -= 1
        if fresh and saves <= 0 and not (fresh[0] / MANIFEST).exists():
            time.sleep(generator.uniform(0, 0.03))
            return kill(process)
        time.sleep(0.001)

    return False


def kill(process: int) -> bool:
    """Send SIGKILL to a process and its second one; return whether that is what ended it."""
    os.killpg(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def ended(process: int) -> bool:
    """Return whether a child has ended by itself; it stays to be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait(process: int) -> int:
    """Wait for a child and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def start(module: ModuleType, flags: Flags, out: Path) -> int:
    """Fork a process that runs the recipe as its command line does, and return its id.

    What it writes goes to `<out>.log`.
    """
    sys.stdout.flush()
    process = os.fork()
    if process:
        with contextlib.suppress(PermissionError):  # it has done so itself
            os.setpgid(process, process)
        return process

    # in the child
    code = 1
    os.setpgid(0, 0)
    if flags.get("ddp_backend"):
        become_two_processes()
    try:
        with out.with_suffix(".log").open("ab", buffering=0) as log:
            for stream in (sys.stdout.fileno(), sys.stderr.fileno()):
                os.dup2(log.fileno(), stream)

        sys.argv = [
            str(module.__file__),
            *(f"--{name}={value}" for name, value in flags.items()),
            f"--output_dir={out}",
        ]
        command_line(module.main)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Nothing that the parent registered shall run here.
        os._exit(code)


def become_two_processes() -> None:
    """Fork the second process of a run, of the same group; each gets its rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rank = int(os.fork() == 0)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # what the warm-up has found out about a process of its own
    AcceleratorState._reset_state(reset_partial_state=True)


def load_and_warm_up(recipe: str) -> ModuleType:
    """Import a recipe, and have its libraries import what they import late."""
    module = load_recipe(ROOT / "recipes" / f"{recipe}.py")
    parse(*settings_classes(module), argv=["--output_dir", "unused"])
    return module


def compare(undisturbed: Path, killed: Path, *, repeats: bool = False) -> list[str]:
    """Return how two finished runs differ: in weights, or in what they logged at a step.

    With `repeats` the killed one may have done its last evaluation again, with the same result.
    """
    files = sorted(path.name for path in undisturbed.glob("*.safetensors"))
    found = [] if files else ["no weights"]

    # weights
    for name in files:
        if not (killed / name).is_file():
            return [f"{name} is missing: {read_last_line(killed)}"]
        with safe_open(undisturbed / name, "pt") as one, safe_open(killed / name, "pt") as two:
            names = list(one.keys())
            unequal = [key for key in names if not one.get_tensor(key).equal(two.get_tensor(key))]
        if unequal:
            found.append(f"{name} differs in {len(unequal)} tensors")

    # log
    expected, logged = read_log(undisturbed), read_log(killed)
    while repeats and len(logged) > len(expected) and logged[-1] == logged[-2]:
        logged.pop()
    for old, new in itertools.zip_longest(expected, logged, fillvalue={}):
        if old != new:
            keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
            shown = ", ".join(f"{key} {old.get(key)} became {new.get(key)}" for key in keys[:4])
            found.append(f"the log differs at step {old.get('step')}: {shown}")
            break

    return found


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the log of a run, without clocks and the summary of the last process."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    kept = [entry for entry in history if "train_runtime" not in entry]
    return [
        {key: value for key, value in entry.items() if not CLOCKS.search(key)} for entry in kept
    ]


def read_last_line(out: Path) -> str:
    """Return the last line that a run wrote."""
    lines = out.with_suffix(".log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing was written"


if __name__ == "__main__":
    sys.exit(main())
