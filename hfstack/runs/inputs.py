"""Describe what a run reads: model folders, and data that must not change."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from hfstack.disk import describe_file
from hfstack.errors import CheckpointError
from hfstack.runs.record import RUN_FILE, RunRecord

_MODEL_FILES = ("*.safetensors", "config.json", "tokenizer.json")


def describe_model_files(folder: Path, known: Collection[str]) -> list[dict[str, Any]]:
    """Return path, size and hash of each file that identifies a local model.

    Args:
        known: paths that are described already.
    """
    found = sorted(path for pattern in _MODEL_FILES for path in folder.glob(pattern))
    return [describe_file(path) for path in found if str(path) not in known]


def relative_parent(folder: Path, output_dir: Path) -> str | None:
    """Return the relative path of the run that wrote a folder; None if none did."""
    if not (folder / RUN_FILE).is_file():
        return None
    return os.path.relpath(folder.resolve(), output_dir.resolve())


def refuse_changed_data(before: RunRecord, records: Sequence[dict[str, Any]]) -> None:
    """Raise when a run would be resumed with other data than it began with.

    Args:
        before: of the run that is resumed.
        records: the sources that are read now, as `describe_sources` gives them.

    Raises:
        CheckpointError: a file is new, or its content is not what it was.
    """
    known = {
        file["path"]: file["blake2b"] for entry in before.data for file in entry.get("files", [])
    }
    # A run that stopped before it recorded its data has nothing to compare with.
    if not known:
        return

    for file in (file for entry in records for file in entry.get("files", [])):
        if known.get(file["path"]) != file["blake2b"]:
            raise CheckpointError(
                f"{file['path']} is not what this run began with; restore it, or start again in "
                "another --output_dir"
            )
