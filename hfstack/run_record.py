"""The content of run.json: what was run, with what, and what came out; how to read it and compare two of them."""

import dataclasses
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfstack.errors import CheckpointError, HfstackError

RUN_FILE = "run.json"
SCHEMA = 1

# Settings that say where and how loudly a run speaks, not what it computes: they may differ on a resume.
_NOT_IDENTITY = frozenset(
    "output_dir resume_from_checkpoint disable_tqdm report_to run_name log_level log_level_replica project "
    "logging_steps logging_first_step logging_strategy push_to_hub hub_model_id hub_strategy hub_private_repo "
    "hub_revision hub_always_push trackio_space_id trackio_bucket_id trackio_static_space_id save_total_limit "
    "dataloader_num_workers dataloader_pin_memory ddp_timeout do_train do_eval do_predict".split()
)


@dataclass
class RunRecord:
    """What was run, with what, and what came out: the content of run.json."""

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
    status: str = "running"
    error: str | None = None
    ended: str | None = None
    duration_s: float | None = None
    process: dict[str, Any] = field(default_factory=dict)
    data: list[dict[str, Any]] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    restarts: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    run_id: str = ""


def read_run(directory: str | Path) -> RunRecord:
    """Read the run.json of a run directory.

    Raises:
        CheckpointError: there is none, it is not whole, or it was written by a newer hfstack.
    """
    path = Path(directory) / RUN_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema"] > SCHEMA:
            raise CheckpointError(f"{path} has schema {values['schema']}, this hfstack reads {SCHEMA}: upgrade hfstack")
        hints = {f.name: f.type for f in dataclasses.fields(RunRecord)}
        for name, plain in (("settings", dict), ("metrics", dict), ("tables", dict), ("data", list)):
            if not isinstance(values.get(name, plain()), plain):
                raise TypeError(f"{name} is a {type(values[name]).__name__}")
        return RunRecord(**{name: value for name, value in values.items() if name in hints})
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; is this the output directory of a run?") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, HfstackError):
            raise
        raise CheckpointError(f"{path} is not a whole run record: {error}") from None


def settings_difference(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[str]:
    """Name each setting that changed, as `learning_rate 0.001 -> 0.01`, leaving out what does not alter the result."""
    old, new = _identity(before), _identity(now)
    missing = object()
    names = sorted(name for name in old.keys() | new.keys() if old.get(name, missing) != new.get(name, missing))
    return [f"{name} {old.get(name)!r} -> {new.get(name)!r}" for name in names]


def _identity(settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The settings that decide what a run computes, in one flat mapping, as JSON reads them back."""
    flat = {name: value for group in settings.values() for name, value in group.items() if name not in _NOT_IDENTITY}
    return json.loads(json.dumps(flat, default=str))


def hash_settings(settings: dict[str, dict[str, Any]]) -> str:
    text = json.dumps(_identity(settings), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def changed_files(data: list[dict[str, Any]]) -> str | None:
    """The first local file whose content is no longer what the record says, or None."""
    for file in (file for entry in data for file in entry.get("files", [])):
        path = Path(file["path"])
        if not path.is_file():
            continue  # moved or cleaned up: nothing to compare with
        if path.stat().st_size != file["bytes"]:
            return str(path)
        if _digest(path) != file["blake2b"]:
            return str(path)
    return None


def describe_outputs(directory: Path) -> list[dict[str, Any]]:
    """Return name, size and hash of each file that a finished run leaves at the top of its directory."""
    paths = [path for path in sorted(directory.iterdir()) if path.is_file() and not path.name.startswith((".", RUN_FILE))]
    return [{"path": path.name, "bytes": path.stat().st_size, "blake2b": _digest(path)} for path in paths]


def changed_output(directory: Path, outputs: list[dict[str, Any]], names: Collection[str]) -> str | None:
    """The first of these files that is no longer what the run left, and how it differs, or None."""
    for file in outputs:
        path = directory / file["path"]
        if file["path"] not in names:
            continue
        if not path.is_file():
            return f"{file['path']} is gone"
        if path.stat().st_size != file["bytes"] or _digest(path) != file["blake2b"]:
            return f"{file['path']} was changed"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
