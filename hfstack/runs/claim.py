"""Claim an output directory for a run, unless it is in use, another's, or done.

Whose it is, its run.json says: with other settings, other inputs or other code it is another run's.
"""

import difflib
import os
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hfstack.disk import retry_reading, size_of_file
from hfstack.errors import AlreadyFinished, CheckpointError, ConfigError
from hfstack.logs import LOG_FILE, get_logger
from hfstack.runs.inputs import (
    RECIPE,
    describe_inputs,
    flags_to_allow,
    refuse_changed_inputs,
)
from hfstack.runs.record import RUN_FILE, RunRecord, changed_files, changed_settings, read_run

logger = get_logger(__name__)


def describe_process() -> dict[str, Any]:
    """Describe this process, so that another one can find out if it still runs."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started_ticks": _started_ticks(os.getpid()),
    }


def claim_directory(
    record: RunRecord, *, recipe: Path, replace_own: bool, allowed: Collection[str]
) -> tuple[RunRecord | None, list[dict[str, Any]], dict[str, tuple[Any, Any]]]:
    """Check that a new run may have its output directory, and write nothing to it.

    Args:
        record: the new run.
        recipe: the file of its recipe.
        replace_own: an earlier run of the same recipe may be replaced.
        allowed: names of settings, and paths of files that were read, which may differ from the run
            that is continued; `recipe` is its code.

    Returns:
        The run that is continued, if any; what the new one reads; and the allowed changes: name to
        old and new value. A run that failed before it wrote anything is not continued but replaced,
        whatever its settings were.

    Raises:
        CheckpointError: the directory cannot be written, is in use, or belongs to another run.
        AlreadyFinished: the same run, with the same settings, inputs and code, has finished here
            before.
        ConfigError: `allowed` names what is neither a setting nor a file.
    """
    directory = Path(record.output_dir)
    _make_writable_directory(directory)

    path = directory / RUN_FILE
    if retry_reading(lambda: size_of_file(path), path, raises=CheckpointError) is None:
        foreign = sorted(
            entry.name for entry in directory.iterdir() if not entry.name.startswith(".")
        )
        if foreign:
            raise CheckpointError(
                f"{directory} holds {foreign[0]} but no run.json, so its files are not ours to "
                "replace; choose another --output_dir"
            )

        _refuse_unknown_names(allowed, record, [])
        return None, describe_inputs(record.settings, recipe), {}

    before = read_run(directory)
    if before.status == "running":
        _refuse_if_running(directory, before.process)

    if before.recipe != record.recipe:
        raise CheckpointError(
            f"{directory} holds a run of {before.recipe}, not of {record.recipe}; choose another "
            "--output_dir"
        )

    # A run that failed before it made anything leaves run.json alone: nothing is lost.
    left = {entry.name for entry in directory.iterdir() if not entry.name.startswith(".")}
    record.models = describe_inputs(record.settings, recipe, before.models)
    _refuse_unknown_names(allowed, record, [*before.models, *record.models])
    if replace_own or (before.status == "failed" and left <= {RUN_FILE, LOG_FILE}):
        return None, record.models, {}

    changed = refuse_changes(before, record, allowed, place=directory)
    if before.status == "finished" and not changed:
        file = changed_files(before.data)
        if file is None:
            raise AlreadyFinished(f"{directory}: already finished on {before.ended}, nothing to do")
        if file not in allowed:
            raise CheckpointError(
                f"{directory} holds a finished run on other data: {file} has changed since; choose "
                f"another --output_dir, or continue with it: {flags_to_allow(record, [file])}"
            )

    _say_other_versions(before, record)
    return before, record.models, changed


def _say_other_versions(before: RunRecord, now: RunRecord) -> None:
    """Log which libraries a continued run had in another version."""
    others = [
        f"{name} {before.versions[name]} -> {version}"
        for name, version in now.versions.items()
        if before.versions.get(name, version) != version
    ]
    if others:
        logger.warning(
            "%s began with other versions, and may end otherwise: %s",
            before.output_dir,
            ", ".join(others),
        )


def refuse_changes(
    before: RunRecord, now: RunRecord, allowed: Collection[str], *, place: Path
) -> dict[str, tuple[Any, Any]]:
    """Return the allowed differences between two runs, by name with old and new value.

    Raises:
        CheckpointError: something else differs; the message shows each difference and how to accept
            it.
    """
    changed = {}
    if before.config_hash != now.config_hash:
        changed = changed_settings(before.settings, now.settings)

    refused = {name: values for name, values in changed.items() if name not in allowed}
    if refused:
        shown = "; ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in refused.items())
        raise CheckpointError(
            f"{place} holds another run of {before.recipe}, which differs in {shown}; choose "
            "another --output_dir, or continue with the new value: "
            f"{flags_to_allow(now, list(refused))}"
        )

    inputs = refuse_changed_inputs(before, now, allowed, place=place, other_settings=changed.keys())
    return changed | inputs


def _refuse_unknown_names(
    allowed: Collection[str], record: RunRecord, inputs: list[dict[str, Any]]
) -> None:
    """Raise when `--allow_changed` names neither a setting of this recipe nor a file."""
    known = {name for group in record.settings.values() for name in group}
    known |= {RECIPE, *(entry["path"] for entry in inputs)}
    for name in sorted(set(allowed) - known):
        # A file of data is known to the recipe alone.
        if Path(name).is_file():
            continue
        close = difflib.get_close_matches(name, sorted(known), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"--allow_changed {name!r} is no setting of {record.recipe}, and no file{hint}"
        )


def _make_writable_directory(directory: Path) -> None:
    """Make the directory, or raise when no file can be made in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".{RUN_FILE}.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f"--output_dir {directory} cannot be written: {error.strerror}; choose another"
        ) from None


def _refuse_if_running(directory: Path, owner: dict[str, Any]) -> None:
    """Raise when the process of a run that is recorded as running is still there.

    A run that was killed is recorded so as well. Which of the two it is cannot be found out for a
    process of another machine: it is logged, and taken as killed.
    """
    pid, host = owner.get("pid"), owner.get("host")
    if host != socket.gethostname():
        logger.warning(
            "%s was left as running by process %s on %s, which cannot be asked from here: taking "
            "it as killed; stop it there if it still writes",
            directory,
            pid,
            host,
        )
        return

    if _alive(pid, owner.get("started_ticks")):
        raise CheckpointError(
            f"{directory} is being written by process {pid}; wait for it or stop it"
        )

    logger.warning(
        "%s was left as running by process %s, which is gone: it was killed", directory, pid
    )


def _alive(pid: int | None, started_ticks: int | None) -> bool:
    """Return whether another process has this id, and is not a later one."""
    if pid is None or pid == os.getpid():
        return False

    # Signal 0 only asks whether the process is there; it may be another user's.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass

    now = _started_ticks(pid)
    return started_ticks is None or now is None or now == started_ticks


def _started_ticks(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; None without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None

    # Field 22 of proc(5), the third one being the state; a zombie has ended.
    state, *fields = stat.rpartition(")")[2].split()
    return -1 if state == "Z" else int(fields[18])
