"""Publish into a folder, for people without a Hub: `file:///srv/models/stories`.

The folder appears whole or not at all: files are copied beside it, brought to the disk and compared, then renamed.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hfstack.errors import CheckpointError, ConfigError
from hfstack.publishing.files import PUBLICATION, Item, make_item

_SCHEME = "file://"


def is_folder(repo: str) -> bool:
    """Whether --repo means a folder."""
    return repo.startswith(_SCHEME)


def folder_of(repo: str) -> Path:
    """Return the folder that `file:///path` names.

    Raises:
        ConfigError: it is not an absolute path of this machine.
    """
    parts = urlsplit(repo)
    if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
        raise ConfigError(f"--repo {repo}: write a folder as file:///absolute/path")
    return Path(unquote(parts.path))


def check_folder(folder: Path) -> None:
    """Refuse to replace what was not published by hfstack.

    Raises:
        CheckpointError: there is a file, or a folder with other content.
    """
    if (
        folder.exists()
        and not (folder / PUBLICATION).is_file()
        and not (folder.is_dir() and not any(folder.iterdir()))
    ):
        raise CheckpointError(
            f"{folder} exists and was not published from here: choose another, or remove it yourself"
        )


def push_to_folder(folder: Path, items: Sequence[Item]) -> int:
    """Copy the items into a folder of their own, in one step, and return how many there were.

    An earlier publication there is replaced.

    Raises:
        CheckpointError: the folder holds something else, cannot be written, or a copy is not what was copied.
    """
    check_folder(folder)
    fresh, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    try:
        if old.exists() and not folder.exists():  # an earlier push died between its two renames
            old.rename(folder)
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)
        for one in items:
            target = fresh / one.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(one.source, target)
            _flush(target)
            if (copied := make_item(one.path, target)).sha256 != one.sha256:
                raise CheckpointError(
                    f"{target} has sha256 {copied.sha256[:12]}, copied was {one.sha256[:12]}"
                )
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        _flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error
    return len(items)


def _flush(path: Path) -> None:
    """Bring a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
