"""Open and check run folders once; the report and cards only arrange them.

A reader opens run.json and the artifacts whose paths it lists, nothing else. In a run that is
`running`, `failed` or `preempted` an artifact may be missing or incomplete, which is noted; in a
finished run it is an error.
"""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfstack.disk import is_inside, read_regular_file, target_of
from hfstack.drawing.smoothing import Points
from hfstack.errors import CheckpointError, DataError
from hfstack.logs import get_logger
from hfstack.runs.record import RUN_FILE, RunRecord, read_run
from hfstack.runs.record_forms import read_trainer_state

logger = get_logger(__name__)

PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}
_SEARCH_DEPTH = 2
_SAMPLES = frozenset({"samples", "completions"})
_READ = _SAMPLES | {"trainer_state", "fillings"}
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Sample:
    """What a model generated for a prompt, at a step of its training if it has one."""

    step: int | None
    prompt: str
    completion: str


@dataclass
class Report:
    """One run with all that its page needs."""

    directory: Path
    record: RunRecord
    label: str = ""
    history: dict[str, Points] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    tables: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.record.status == "finished"


def load_runs(paths: list[str]) -> list[Report]:
    """Return the runs under `paths` in the order in which they started, each once.

    Args:
        paths: run directories, or folders that hold run directories one or two levels down.
            Reports are left out.

    Raises:
        CheckpointError: a path holds no run, or a run.json is not whole.
        DataError: a finished run lists an artifact that is absent or malformed.
    """
    directories = {found.resolve(): found for path in paths for found in find_runs(Path(path))}
    records = [(found, read_run(found)) for found in directories.values()]
    kept = [_load_report(found, record) for found, record in records if record.recipe != "report"]
    if not kept:
        raise CheckpointError(
            f"--runs {' '.join(paths)}: only reports there; give the directories of other runs"
        )

    kept.sort(key=lambda report: report.record.started)
    labels = label_runs([report.directory for report in kept])
    for report, label in zip(kept, labels, strict=True):
        report.label = label
    return kept


def find_runs(folder: Path) -> list[Path]:
    """Return the run directories at or under a folder, without looking inside a run.

    Raises:
        CheckpointError: there is none.
    """
    level = [folder]
    found: list[Path] = []
    for _ in range(_SEARCH_DEPTH + 1):
        found += [path for path in level if (path / RUN_FILE).is_file()]
        outside = [path for path in level if path not in found and path.is_dir()]
        level = [child for path in outside for child in sorted(path.iterdir())]
        # A page must not carry away what nobody named.
        for path in [child for child in level if not is_inside(child, folder)]:
            level.remove(path)
            if (path / RUN_FILE).is_file():
                logger.warning(
                    "%s is a link to %s, outside of %s: left out; name it if it belongs here",
                    path,
                    target_of(path),
                    folder,
                )

    if not found:
        reason = "no such directory"
        if folder.is_dir():
            reason = f"no {RUN_FILE} in it or {_SEARCH_DEPTH} levels down"
        raise CheckpointError(
            f"--runs {folder}: {reason}; give the --output_dir of a run, or the folder above it"
        )
    return found


def name_group(group: Sequence[Report]) -> tuple[str, str | None]:
    """Return what runs are called: one by its folder, several by their recipe.

    The second text says the recipe of a run whose folder does not.
    """
    recipe, label = group[0].record.recipe, group[0].label
    if len(group) > 1 or not label:
        return recipe, None
    return label, recipe if label != recipe else None


def label_runs(directories: Sequence[Path]) -> list[str]:
    """Return a label for each directory: as few of its last parts as are unique.

    Args:
        directories: each once.
    """
    parts = [directory.resolve().parts for directory in directories]
    labels = []
    for own in parts:
        depth = 1
        while sum(other[-depth:] == own[-depth:] for other in parts) > 1 and depth < len(own):
            depth += 1
        labels.append("/".join(own[-depth:]))
    return labels


def starting_model(record: RunRecord) -> str | None:
    """Return what a run got its weights from: a config.json, a model, or None."""
    name = record.settings.get("ModelConfig", {}).get("model_name_or_path")
    return name if isinstance(name, str) and name else None


def flatten_settings(record: RunRecord) -> dict[str, Any]:
    """Return the settings of all groups of a run in one mapping."""
    return {name: value for group in record.settings.values() for name, value in group.items()}


def read_history(path: Path) -> dict[str, Points]:
    """Return what a Trainer logged, by name, as (step, value) in order of step.

    A run that went back to a checkpoint logs some steps again; what it logged last counts, so no
    step comes twice. Numbers that were logged beside an `eval_` one, such as `bits_per_byte`, are
    held out as well and get its prefix.

    Raises:
        DataError: the file is not a Trainer's state.
    """
    series: dict[str, Points] = {}
    state = read_trainer_state(path, raises=DataError)
    for at, entry in enumerate(state["log_history"]):
        step: Any = entry.get("step")
        if not _is_number(step) or not 0 <= step < 1 << 53:
            raise DataError(f"{path}: log_history[{at}].step is {step!r:.40}, not a step")

        held_out = any(name.startswith("eval_") for name in entry)
        for logged_name, value in entry.items():
            if logged_name in ("step", "epoch") or not _is_number(value):
                continue
            name = f"eval_{logged_name.removeprefix('eval_')}" if held_out else logged_name

            # The run went back: what it had logged from here on no longer counts.
            points = series.setdefault(name, [])
            while points and points[-1][0] >= step:
                points.pop()
            points.append((step, value))
    return series


def read_samples(path: Path, *, may_be_incomplete: bool) -> list[Sample]:
    """Return the samples of a file in order of step.

    Of one prompt at one step, the last one counts.

    Args:
        path: one JSON object a line: `prompt`, `completion` (or `answer`) and, while training,
            `step`. A prompt may be a conversation.
        may_be_incomplete: whether a last line without an end is expected, as in a run that is
            still going.

    Raises:
        DataError: a line is not such an object.
    """
    lines = _text_of_artifact(path).split("\n")
    if may_be_incomplete:
        lines.pop()

    found: dict[tuple[int | None, str], Sample] = {}
    without_step = 0
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            sample = _parse_sample(json.loads(line))
        except _MALFORMED as error:
            raise DataError(
                f"{path}, line {line_number}: not a sample ({type(error).__name__}: {error})"
            ) from None

        # Outside of training, several completions of one prompt are all results.
        if sample.step is None:
            without_step += 1
        found[(sample.step if sample.step is not None else -without_step, sample.prompt)] = sample
    return sorted(found.values(), key=lambda sample: -1 if sample.step is None else sample.step)


def _text_of_artifact(path: Path) -> str:
    """Return the text of an artifact, or raise DataError where it is none."""
    try:
        return read_regular_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: invalid UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _parse_sample(row: dict[str, Any]) -> Sample:
    """Return a row as a sample; of a conversation, the contents of its turns.

    Raises one of _MALFORMED.
    """
    prompt = row["prompt"]
    if isinstance(prompt, list):
        prompt = "\n".join(str(turn["content"]) for turn in prompt)
    completion, step = row.get("completion", row.get("answer")), row.get("step")

    if not (isinstance(prompt, str) and isinstance(completion, str)):
        raise TypeError("prompt and completion are strings")
    if not isinstance(step, int | None):
        raise TypeError("step is a whole number")
    return Sample(step, prompt, completion)


def read_fillings(path: Path) -> dict[str, list[Any]]:
    """Return what a masked model put into the masks, as a table: a row a mask.

    Raises:
        DataError: a line is not a text with a mask and its candidates.
    """
    rows: list[list[Any]] = []
    lines = _text_of_artifact(path).rstrip("\n").split("\n")
    for line_number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            words = [f"{word.strip()} {100 * share:.1f} %" for word, share in row["candidates"]]
            rows.append([row["text"], row["mask"] + 1, ", ".join(words)])
        except _MALFORMED as error:
            raise DataError(
                f"{path}, line {line_number}: not a filling ({type(error).__name__}: {error})"
            ) from None
    return {"columns": ["text", "mask", "candidates"], "rows": rows}


def _load_report(directory: Path, record: RunRecord) -> Report:
    """Open the artifacts of one run."""
    report = Report(directory, record, tables=dict(record.tables))
    for name, relative in record.artifacts.items():
        path = directory / relative
        if name not in _READ and path.suffix.lower() not in PICTURES:
            continue  # listed for other readers: a dataset, a model

        # A page must not carry other files away.
        if not is_inside(path, directory):
            raise DataError(
                f"{directory / RUN_FILE}: artifact {name} is {relative!r}, "
                "outside of the run's directory"
            )
        if not path.is_file():
            if report.finished:
                raise DataError(
                    f"{path} is listed in {RUN_FILE} as {name} but is not there; "
                    "restore it or run again"
                )
            report.notes.append(f"{relative} ({name}) is listed but not there yet")
            continue

        try:
            _read_artifact(report, name, path)
        except DataError as error:
            if report.finished:
                raise
            report.notes.append(f"{name} cannot be read yet: {error}")

    report.notes += _describe_broken_curves(report.history)
    return report


def _read_artifact(report: Report, name: str, path: Path) -> None:
    """Put one artifact's content where the page looks for it."""
    if name == "trainer_state":
        report.history = read_history(path)
    elif name in _SAMPLES:
        report.samples += read_samples(path, may_be_incomplete=not report.finished)
    elif name == "fillings":
        report.tables["fillings"] = read_fillings(path)
    else:
        content = base64.b64encode(path.read_bytes()).decode()
        report.pictures[name] = f"data:{PICTURES[path.suffix.lower()]};base64,{content}"


def _describe_broken_curves(history: dict[str, Points]) -> list[str]:
    """Return a note for each curve that was not finite somewhere.

    That is the first thing to know about a run that diverged.
    """
    notes = []
    for name, points in history.items():
        broken = [step for step, value in points if not math.isfinite(value)]
        if broken:
            notes.append(
                f"{name} was not a finite number at {len(broken)} of {len(points)} logged steps, "
                f"first at step {broken[0]}"
            )
    return notes


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
