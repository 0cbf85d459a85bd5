"""Define run.json: what was run, with what, and the results.

Read it, compare two of them, and claim a directory for a new one.
"""

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hfstack.disk import (
    atomic_write,
    describe_file,
    hash_text,
    is_as_described,
    is_inside,
    is_missing,
    read_regular_file,
    retry_reading,
    size_of_file,
    target_of,
)
from hfstack.errors import CheckpointError, ConfigError, HfstackError
from hfstack.json_forms import read_json
from hfstack.logs import LOG_FILE, get_logger, shorten
from hfstack.redaction import redact, redact_values
from hfstack.row_counts import RowCounts, read_row_counts
from hfstack.runs.record_forms import refuse_odd_record

logger = get_logger(__name__)

RUN_FILE = "run.json"
MODULE_FOLDERS = "[0-9]_*/*"
"""Files of the modules of sentence-transformers, such as 1_Pooling/config.json."""
SCHEMA = 1

# Settings of where a run writes and how much it logs, not of what it computes: they may differ on
# a resume.
_NOT_IDENTITY = frozenset(
    "output_dir resume_from_checkpoint save_total_limit do_train do_eval do_predict "
    "disable_tqdm log_level log_level_replica logging_steps logging_first_step logging_strategy "
    "report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id "
    "push_to_hub hub_model_id hub_strategy hub_private_repo hub_revision hub_always_push "
    "dataloader_num_workers dataloader_pin_memory ddp_timeout check_contamination".split()
)


@dataclass
class RunRecord:
    """The content of run.json: what was run, with what, and the results."""

    recipe: str
    command: str
    output_dir: str
    commit: str | None
    versions: dict[str, str]
    python: str
    hardware: dict[str, Any]
    world_size: int
    started: str
    config_hash: str
    settings: dict[str, dict[str, Any]]
    schema: int = SCHEMA

    # how it went
    status: str = "running"
    error: str | None = None
    error_kind: str | None = None
    ended: str | None = None
    duration_s: float | None = None
    process: dict[str, Any] = field(default_factory=dict)

    # what it read
    data: list[dict[str, Any]] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    rendering: dict[str, str] = field(default_factory=dict)

    # what came out
    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    restarts: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    save_check: dict[str, Any] = field(default_factory=dict)

    # so that a resumed run goes on as the same one
    run_id: str = ""
    verified_checkpoints: bool = False
    example: str | None = None
    rows: RowCounts = field(default_factory=RowCounts)


def put_back(directory: Path, before: RunRecord | None) -> None:
    """Write the run.json of before, or none after a run that only looked at its data."""
    path = directory / RUN_FILE
    if before is not None:
        with atomic_write(path) as file:
            json.dump(dataclasses.asdict(before), file, indent=2, ensure_ascii=False)
        return

    # A file of bad rows is worth keeping.
    path.unlink(missing_ok=True)
    (directory / LOG_FILE).unlink(missing_ok=True)
    if not any(directory.iterdir()):
        directory.rmdir()


def read_run(directory: str | Path) -> RunRecord:
    """Read the run.json of a run directory.

    Raises:
        CheckpointError: there is none, it is not whole, it could not be read, it was written by a
            newer hfstack, or it is a link to the record of another run.
    """
    path = Path(directory) / RUN_FILE
    if not is_inside(path, Path(directory)):
        raise CheckpointError(
            f"{path} is a link to {target_of(path)}, the record of another run: copy it if it "
            "belongs there"
        )
    try:
        content = retry_reading(lambda: read_regular_file(path), path, raises=CheckpointError)
        values = read_json(content)
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}; is this the output directory of a run?"
        ) from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is not a complete run record: {reason}") from None

    schema = values.get("schema") if isinstance(values, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise CheckpointError(
            f"{path} has schema {schema}, this hfstack reads {SCHEMA}: upgrade hfstack"
        )
    refuse_odd_record(values, RunRecord, path)

    # A field that another version wrote and this one does not know is left out.
    values["rows"] = read_row_counts(values.get("rows", {}))
    known = {field.name for field in dataclasses.fields(RunRecord)}
    return RunRecord(**{name: value for name, value in values.items() if name in known})


def continue_record(record: RunRecord, before: RunRecord) -> None:
    """Take over what a run knows of itself from its earlier start."""
    # Until what is read now takes its place: a start that is killed before that forgets nothing.
    record.data = list(before.data)
    record.restarts = before.restarts
    # A record of an older version may have no id.
    record.run_id = before.run_id or record.run_id
    record.verified_checkpoints = before.verified_checkpoints


def record_error(record: RunRecord, error: BaseException) -> None:
    """Record the error of a failed run in one line, without secrets."""
    kind = type(error).__name__
    text = str(error) if isinstance(error, HfstackError) else f"{kind}: {error}"
    record.error = shorten(redact(" ".join(text.split())))
    record.error_kind = kind


def utc_now() -> str:
    """Return the time as run.json gives it: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def settings_as_dict(settings: Any) -> dict[str, Any]:
    """Return a settings object as plain values, without secrets.

    They are part of no identity: a new password makes no other run of it.
    """
    # A TrainingArguments has a form of its own for JSON.
    has_own_form = hasattr(settings, "to_dict")
    values = settings.to_dict() if has_own_form else dataclasses.asdict(settings)
    secrets = ("hub_token", "push_to_hub_token")
    return redact_values({name: value for name, value in values.items() if name not in secrets})


def changed_settings(
    before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]
) -> dict[str, tuple[Any, Any]]:
    """Return the old and new value of each changed setting that alters the result."""
    old, new = _identity(before), _identity(now)
    missing = object()
    names = sorted(
        name for name in old.keys() | new.keys() if old.get(name, missing) != new.get(name, missing)
    )
    return {name: (old.get(name), new.get(name)) for name in names}


def _identity(settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the settings that decide what a run computes, as one flat mapping.

    The values are as JSON reads them back. The groups count for nothing: a class of settings may be
    renamed without making another run of it.
    """
    flat = {
        name: value
        for group in settings.values()
        for name, value in group.items()
        if name not in _NOT_IDENTITY
    }
    return json.loads(json.dumps(flat, default=str))


def hash_settings(settings: dict[str, dict[str, Any]]) -> str:
    """Return a digest of the settings that decide what a run computes."""
    text = json.dumps(_identity(settings), sort_keys=True, default=str)
    return hash_text(text)


def refuse_no_step(step: int) -> None:
    """Raise when a trainer is done and has taken no step, so that nothing was trained."""
    if step < 1:
        raise ConfigError(
            "no optimizer step was taken, so nothing was trained: set --max_steps or "
            "--num_train_epochs higher, or give more rows"
        )


def changed_files(data: list[dict[str, Any]]) -> str | None:
    """Return the first local file that is not what the record says, or None."""
    for file in (file for entry in data for file in entry.get("files", [])):
        path = Path(file["path"])
        # One that was moved or cleaned up leaves nothing to compare with.
        if _is_changed(path, file):
            return str(path)

    return None


def _is_changed(path: Path, description: dict[str, Any]) -> bool | None:
    """Return whether a file is not as described, or None where it is missing.

    Raises:
        CheckpointError: it could not be read, so that nobody knows.
    """

    def compare() -> bool | None:
        if size_of_file(path) is None:
            return None
        return not is_as_described(path, description)

    try:
        return retry_reading(compare, path, raises=CheckpointError)
    except OSError as error:
        # It was deleted between two looks.
        if is_missing(error):
            return None
        raise


def describe_outputs(directory: Path) -> list[dict[str, Any]]:
    """Return name, size and hash of each top-level file of a finished run.

    Those of the modules of sentence-transformers, which are part of a model, count as such.
    """
    paths = [
        path
        for path in [*sorted(directory.iterdir()), *sorted(directory.glob(MODULE_FOLDERS))]
        if path.is_file() and not path.name.startswith((".", RUN_FILE, LOG_FILE))
    ]

    return [describe_file(path, path.relative_to(directory).as_posix()) for path in paths]


def changed_output(
    directory: Path, outputs: list[dict[str, Any]], names: Collection[str]
) -> str | None:
    """Return the first of these files that was changed since the run, and how.

    None when all are unchanged.

    Args:
        directory: the run's.
        outputs: as `describe_outputs` gave them at the end of the run.
        names: of the files that count.
    """
    for file in outputs:
        path = directory / file["path"]
        if file["path"] not in names:
            continue
        changed = _is_changed(path, file)
        if changed is None:
            return f"{file['path']} is gone"
        if changed:
            return f"{file['path']} was changed"

    return None
