"""Name the forms of hfstack's records on the disk, and read them only in these.

run.json, trainer_state.json and publication.json; of a checkpoint's manifest, manifest.py knows the
form.
"""

import dataclasses
import typing
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NotRequired, Required, TypedDict

from hfstack.disk import read_regular_file
from hfstack.errors import CheckpointError, HfstackError
from hfstack.json_forms import read_json, refuse_misfit


class FileEntry(TypedDict):
    """A file that a run has read or written, as `describe_file` gives it."""

    path: str
    bytes: int
    blake2b: str


class InputEntry(TypedDict, total=False):
    """A file of a model that a run has read, or a model of the Hub by its commit."""

    path: Required[str]
    setting: str
    bytes: int
    blake2b: str
    stamp: list[int]
    revision: str | None
    commit: str | None


class DataEntry(TypedDict, total=False):
    """A source of rows, as `describe_sources` gives it."""

    path: Required[str]
    role: str
    files: list[FileEntry]
    rows: int | None
    name: str | None
    split: str | None
    revision: str | None


class Restart(TypedDict, total=False):
    """A resume of a run."""

    step: Required[int]
    time: str
    changed: dict[str, list[Any]]


class Table(TypedDict):
    """A small table of a run; each row has a cell for each column."""

    columns: list[str]
    rows: list[list[Any]]


class Hardware(TypedDict, total=False):
    """What a run has computed on."""

    cpu: str
    cores: int | None
    memory_gib: float
    device: str
    accelerators: list[str]
    platform: str
    threads: int


class Process(TypedDict, total=False):
    """The process that writes a run."""

    pid: int
    host: str
    started_ticks: int | None


class TrainerState(TypedDict):
    """What a Trainer writes beside a checkpoint; more fields than these."""

    global_step: NotRequired[int]
    log_history: list[dict[str, Any]]


class PublishedFile(TypedDict):
    """A file of a publication."""

    bytes: int
    sha256: str


class CheckNumber(TypedDict):
    """A number that was measured on the published files."""

    name: str
    value: float


class Publication(TypedDict):
    """What publication.json says of the files beside it."""

    schema: int
    kind: str
    files: dict[str, PublishedFile]
    check: NotRequired[CheckNumber | None]
    repo: NotRequired[str]
    run_id: NotRequired[str]
    repo_type: NotRequired[str]
    adapter: NotRequired[bool]
    hfstack: NotRequired[str]


class PublishedRun(TypedDict, total=False):
    """A record in runs.json, of which more is published."""

    run_id: str
    outputs: list[FileEntry]


# What the hints of RunRecord leave open.
_FINER = {
    "status": Literal["running", "finished", "failed", "preempted"],
    "data": list[DataEntry],
    "models": list[InputEntry],
    "outputs": list[FileEntry],
    "restarts": list[Restart],
    "tables": dict[str, Table],
    "hardware": Hardware,
    "process": Process,
    "settings": dict[str, dict[str, Any]],
}


def refuse_odd_record(values: Any, record: type[Any], path: Path) -> None:
    """Raise where the content of a run.json has not the form of a record.

    Args:
        values: what the file holds.
        record: the dataclass of a record; its hints are the form.
        path: of the file.

    Raises:
        CheckpointError: names the field.
    """
    if not isinstance(values, dict):
        refuse_misfit(values, dict[str, Any], path, CheckpointError)
    for field in dataclasses.fields(record):
        if field.name not in values:
            is_needed = field.default is field.default_factory is dataclasses.MISSING
            if is_needed:
                raise CheckpointError(
                    f"{path} is not a complete run record: {field.name} is missing"
                )
            continue
        hint = _FINER.get(field.name) or typing.get_type_hints(record)[field.name]
        refuse_misfit({field.name: values[field.name]}, dict[str, hint], path, CheckpointError)

    for name in ("started", "ended"):
        if (time := values.get(name)) is not None and not _is_time(time):
            raise CheckpointError(f"{path}: {name} is {time[:40]!r}, not an ISO time")
    for name, table in values.get("tables", {}).items():
        if any(len(row) != len(table["columns"]) for row in table["rows"]):
            raise CheckpointError(
                f"{path}: table {name[:40]} is not columns and rows of that many cells"
            )


def read_trainer_state(path: Path, *, raises: type[HfstackError]) -> TrainerState:
    """Return what a Trainer wrote at a step.

    Raises:
        HfstackError: `raises`, naming file and field, where it is something else.
        OSError: it could not be read.
    """
    return _read_form(path, TrainerState, raises=raises)


def read_publication_file(path: Path) -> Publication:
    """Return the content of a publication.json.

    Raises:
        CheckpointError: it names what the file has not.
        OSError: it could not be read.
    """
    return _read_form(path, Publication, raises=CheckpointError)


def read_published_runs(path: Path) -> list[PublishedRun]:
    """Return the records of a publication's runs.json, as far as `verify` reads them.

    Raises:
        CheckpointError: it names what the file has not.
        OSError: it could not be read.
    """
    return _read_form(path, list[PublishedRun], raises=CheckpointError)


def _read_form(path: Path, form: Any, *, raises: type[HfstackError]) -> Any:
    try:
        values = read_json(read_regular_file(path))
    except ValueError as error:
        raise raises(f"{path} is not JSON: {' '.join(str(error).split())[:200]}") from None
    refuse_misfit(values, form, path, raises)
    return values


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        return False
    return True
