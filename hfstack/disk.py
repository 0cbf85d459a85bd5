"""Hash and describe files, flush them to disk, write them all or nothing.

Standard library only.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


def hash_file(path: Path) -> str:
    """Return the BLAKE2b digest of a file's bytes: 16 bytes in hex, as in run.json."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def hash_text(text: str) -> str:
    """Return the BLAKE2b digest of a text in UTF-8: 16 bytes in hex."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def describe_file(path: Path, name: str | None = None) -> dict[str, Any]:
    """Return name, size and digest of a file, as run.json lists them.

    Args:
        path: the file.
        name: how it is called in the record; its path by default.
    """
    return {"path": name or str(path), "bytes": path.stat().st_size, "blake2b": hash_file(path)}


def is_as_described(path: Path, description: dict[str, Any]) -> bool:
    """Return whether a file has the size and the digest of its description."""
    # A file of another size need not be read.
    same_size = path.stat().st_size == description["bytes"]
    return same_size and hash_file(path) == description["blake2b"]


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: Path, *, errors: str = "strict", durable: bool = True) -> Iterator[TextIO]:
    """Open a text file (UTF-8) that gets its name only once all of it is on disk.

    A reader sees the old file or the new one, never a part; when the block raises, the old one
    stays.

    Args:
        path: the file; its folder must exist.
        errors: what `open` does with characters that UTF-8 does not have.
        durable: whether the block ends only when the file would survive a power failure.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors=errors, newline="\n") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise

    # The new name is an entry of the folder, which has to reach the disk as well.
    if durable:
        flush_to_disk(path.parent)
