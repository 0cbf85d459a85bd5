"""Write the manifest of a checkpoint, and compare the checkpoint with it.

Standard library only.

`hfstack-manifest.json` is written last, after everything else has reached the disk, and holds size
and blake2b of every file.
"""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from hfstack.disk import (
    HASHING_THREADS,
    atomic_write,
    file_names,
    flush_to_disk,
    hash_file,
    is_missing,
    read_regular_file,
    retry_reading,
    size_of_file,
)
from hfstack.errors import CheckpointError

T = TypeVar("T")

MANIFEST = "hfstack-manifest.json"
# upstream's mark of a checkpoint that is being written
INCOMPLETE = "checkpoint-is-incomplete.txt"
STATE = "trainer_state.json"
# upstream writes it beside each model: every setting is in it, tokens among them, in clear
PICKLED_SETTINGS = "training_args.bin"
_MANIFEST_SCHEMA = 1
_DIGEST = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Manifest:
    """What a manifest says: each file by its relative name, with size and blake2b."""

    step: int
    settings: dict[str, float]
    files: dict[str, list[Any]]


def write_manifest(
    path: Path, *, step: int, world_size: int = 1, settings: dict[str, Any] | None = None
) -> None:
    """Flush every file of a checkpoint to the disk, then write its manifest.

    Upstream's mark of an unfinished checkpoint is removed last.

    Args:
        path: the checkpoint's folder, to which every process has written its part.
        step: the optimizer step that it holds.
        world_size: how many processes wrote it.
        settings: what the optimizer's state in it was made with, such as the learning rate.
    """
    # Contents first, then the folders' lists of names, and only then the manifest.
    names = content_names(path)
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        described = list(pool.map(lambda name: _flush_and_describe(path / name), names))
    for folder in {path, *((path / name).parent for name in names)}:
        flush_to_disk(folder)

    manifest = {
        "schema": _MANIFEST_SCHEMA,
        "step": step,
        "world_size": world_size,
        "settings": settings or {},
        "files": dict(zip(names, described, strict=True)),
    }
    with atomic_write(path / MANIFEST) as file:
        json.dump(manifest, file, indent=1)

    (path / INCOMPLETE).unlink(missing_ok=True)
    flush_to_disk(path)
    flush_to_disk(path.parent)


def read_manifest(path: Path) -> Manifest | None:
    """Read the manifest of a checkpoint; None when it has not the form of one.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it could not be read, or a newer hfstack wrote it, so that this one cannot
            judge it.
    """
    file = path / MANIFEST
    try:
        values = json.loads(look(lambda: read_regular_file(file), file))
    except (ValueError, RecursionError):
        return None

    if not isinstance(values, dict):
        return None
    step, schema = values.get("step"), values.get("schema")
    if not (_is_count(step) and _is_count(schema)):
        return None

    # Raised, because what is returned as damage would be set aside.
    if schema > _MANIFEST_SCHEMA:
        raise CheckpointError(
            f"{file} has schema {schema}, this hfstack reads {_MANIFEST_SCHEMA}: upgrade hfstack"
        )

    files, settings = values.get("files"), values.get("settings", {})
    if not isinstance(files, dict) or not isinstance(settings, dict):
        return None
    if not all(isinstance(value, int | float) for value in settings.values()):
        return None
    if not all(_is_entry(name, entry) for name, entry in files.items()):
        return None
    return Manifest(step, settings, files)


def read_manifest_settings(path: Path) -> dict[str, Any]:
    """Return the settings that `write_manifest` was given for a whole checkpoint.

    Empty without a manifest.
    """
    try:
        manifest = read_manifest(path)
    except FileNotFoundError:
        return {}
    return manifest.settings if manifest else {}


def differs_from_manifest(path: Path, step: int, deep: bool) -> str | None:
    """Return how a checkpoint differs from its manifest, or None.

    Args:
        path: the checkpoint's folder, which has a manifest.
        step: what the folder's name says, -1 when it says nothing.
        deep: whether contents are read, and not only names and sizes compared.

    Raises:
        CheckpointError: something could not be read, or a newer hfstack wrote the manifest.
    """
    manifest = read_manifest(path)
    if manifest is None:
        return f"{MANIFEST} is not whole"
    if step not in (manifest.step, -1):
        return f"its manifest is of step {manifest.step}"
    if STATE not in manifest.files:
        return f"its manifest does not name {STATE}"

    for name, (size_bytes, _) in manifest.files.items():
        found_bytes = find_size(path / name)
        if found_bytes is None:
            return f"{name} is missing"
        if found_bytes != size_bytes:
            return f"{name} has {found_bytes} bytes instead of {size_bytes}"

    if not deep:
        return None

    def digest(name: str) -> str | None:
        try:
            return look(lambda: hash_file(path / name), path / name)
        except OSError as error:
            if is_missing(error):
                return None
            raise

    # Hashing releases the interpreter's lock, so threads read several files at once.
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        for name, found in zip(manifest.files, pool.map(digest, manifest.files), strict=True):
            if found != manifest.files[name][1]:
                return f"{name} is not what was written (its blake2b differs)"

    return None


def content_names(path: Path) -> list[str]:
    """Return the relative names of a checkpoint's files.

    Neither the manifest nor upstream's mark is content.
    """
    # .tmp is what versions before 0.2 left of a manifest that was never finished.
    own = {MANIFEST, f"{MANIFEST}.partial", f"{MANIFEST}.tmp", INCOMPLETE}
    return [name for name in look(lambda: file_names(path), path) if name not in own]


def look(read: Callable[[], T], path: Path) -> T:
    """Read something of a checkpoint, in a few tries.

    Raises:
        CheckpointError: it could not be read. What that is, nobody knows: not damage.
    """
    return retry_reading(read, path, raises=CheckpointError, remark="; nothing was changed")


def find_size(path: Path) -> int | None:
    """Return the size in bytes of a checkpoint's file, or None where it is missing.

    Raises:
        CheckpointError: it could not be looked at.
    """
    return look(lambda: size_of_file(path), path)


def _flush_and_describe(path: Path) -> list[int | str]:
    """Return size in bytes and blake2b of a file that is flushed to the disk first."""
    flush_to_disk(path)
    return [path.stat().st_size, hash_file(path)]


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_entry(name: str, entry: Any) -> bool:
    """Return whether a manifest's entry names a file inside, as it was written."""
    inside = bool(name) and "\0" not in name and not Path(name).is_absolute()
    if not inside or ".." in Path(name).parts:
        return False
    if not isinstance(entry, list) or len(entry) != 2 or not _is_count(entry[0]):
        return False
    return isinstance(entry[1], str) and _DIGEST.fullmatch(entry[1]) is not None
