"""Run a recipe once for each value of an option, side by side in one folder.

    hfstack run classify --datasets my.csv --sweep learning_rate=1e-5,3e-5 --output_dir runs/rates

The runs come one after the other, since each uses the whole machine. The same command again goes on
where it stopped: what has finished is left, what was interrupted resumes.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from hfstack.cli.supervise import say
from hfstack.drawing.measures import describe_measure, most_telling
from hfstack.errors import ConfigError
from hfstack.runs.checkpoint_files import newest_checkpoint
from hfstack.runs.record import RUN_FILE, read_run

_MOST_RUNS = 100


def read_sweeps(texts: Sequence[str]) -> list[dict[str, str]]:
    """Return the options of each run: all combinations, the last changing fastest.

    Args:
        texts: each `name=value,value`.

    Raises:
        ConfigError: one is of another form, an option comes twice, or there are too many runs.
    """
    values: dict[str, list[str]] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        found = list(dict.fromkeys(part.strip() for part in rest.split(",")))
        if not equals or not name or not all(found):
            raise ConfigError(
                f"--sweep {text}: give an option and its values, such as learning_rate=1e-4,3e-4"
            )
        if name in values or name == "output_dir":
            raise ConfigError(f"--sweep {text}: {name} cannot be swept, or is swept already")
        values[name] = found

    runs = [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]
    if len(runs) > _MOST_RUNS:
        raise ConfigError(f"--sweep: these are {len(runs)} runs; at most {_MOST_RUNS} at once")
    return runs


def run_sweep(
    sweeps: Sequence[str], folder: str | None, start: Callable[[str, list[str]], int]
) -> int:
    """Start one run after the other, then a report of all; return the exit code.

    The first run that fails ends the sweep.

    Args:
        sweeps: each `name=value,value`.
        folder: that holds the folders of the runs.
        start: starts a recipe, by its name and further flags; "" is the recipe that is swept.
    """
    runs = read_sweeps(sweeps)
    if folder is None:
        raise ConfigError("--sweep needs --output_dir, the folder that holds its runs")

    places = [Path(folder) / name_of(options) for options in runs]
    for number, (options, place) in enumerate(zip(runs, places, strict=True), 1):
        say(f"run {number} of {len(runs)}: {place.name}")
        flags = [f"--{name}={value}" for name, value in options.items()]
        if _was_interrupted(place):
            flags += ["--resume_from_checkpoint", "last"]
        code = start("", [*flags, "--output_dir", str(place)])
        if code:
            say(f"{place} did not finish; the same command goes on from there")
            return code

    code = start("report", ["--runs", *map(str, places), "--output_dir", f"{folder}/report"])
    width = max(len(place.name) for place in places)
    for place in places:
        record = read_run(place)
        name = next(iter(most_telling(record.metrics, record.recipe)), None)
        result = describe_measure(name, record.metrics, record.recipe) if name else "no results"
        say(f"{place.name:<{width}}  {result}")
    return code


def _was_interrupted(place: Path) -> bool:
    """Return whether a folder holds a run that has not finished, with a checkpoint."""
    begun = (place / RUN_FILE).is_file() and read_run(place).status != "finished"
    return begun and newest_checkpoint(place) is not None


def name_of(options: dict[str, str]) -> str:
    """Return the name of a run's folder: its options, in what file systems take."""
    text = ",".join(f"{name}={value}" for name, value in options.items())
    return re.sub(r"[^\w=,.+-]+", "_", text)
