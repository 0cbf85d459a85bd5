"""Publish into a folder, for people without a Hub: `file:///srv/models/stories`.

The folder appears whole or not at all: files are copied beside it, flushed to the disk and
compared, then the copy is renamed.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hfstack.disk import atomic_folder, flush_to_disk
from hfstack.errors import CheckpointError, ConfigError
from hfstack.publishing.files import FileToPublish, make_item
from hfstack.runs.rendering import PUBLICATION

_SCHEME = "file://"


def names_folder(repo: str) -> bool:
    """Return whether --repo means a folder."""
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
    published = (folder / PUBLICATION).is_file()
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not published and not empty:
        raise CheckpointError(
            f"{folder} exists and was not published from here: "
            "choose another, or remove it yourself"
        )


def push_to_folder(folder: Path, items: Sequence[FileToPublish]) -> int:
    """Copy the items into a folder of their own, in one step; return how many.

    An earlier publication there is replaced.

    Raises:
        CheckpointError: the folder holds something else, cannot be written, or a copy differs.
    """
    check_folder(folder)
    try:
        with atomic_folder(folder) as fresh:
            for one in items:
                _copy_item(one, fresh / one.path)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error
    return len(items)


def _copy_item(one: FileToPublish, target: Path) -> None:
    """Copy a file to the disk, and compare what arrived."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(one.source, target)
    flush_to_disk(target)
    if (copied := make_item(one.path, target)).sha256 != one.sha256:
        raise CheckpointError(
            f"{target} has sha256 {copied.sha256[:12]}, copied was {one.sha256[:12]}"
        )
