"""Hash and describe files, flush them to disk, write them all or nothing.

Standard library only.

That a file cannot be read says nothing about what is in it. What reads a file to judge it does so
through `retry_reading`: an answer is "it is there", "it is missing" or "it differs", and a file
that cannot be looked at is an error, never one of these.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from hfstack.errors import HfstackError
from hfstack.logs import get_logger

logger = get_logger(__name__)

T = TypeVar("T")
HASHING_THREADS = 4
MOST_RECORD_BYTES = 256 << 20
"""The largest file that is read in one piece: records, configurations, samples."""

# Pauses before a file that cannot be read is tried again. A network file system answers ESTALE
# until the file is opened again, and a table of open files empties by itself.
_PAUSES_S = (0.5, 1.0, 2.0)

# The answers of the system that mean that there is no such file, and not that it is out of reach.
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}

_ADVICE = {
    errno.EMFILE: "raise the number of files that may be open (ulimit -n)",
    errno.ENFILE: "close programs on this machine that hold files open",
    errno.EACCES: "give this user the right to read and write it",
    errno.EPERM: "give this user the right to read and write it",
    errno.EROFS: "mount it so that it can be written",
    errno.ESTALE: "mount the network file system again",
    errno.EIO: "look at the disk or the network that it lies on",
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the size that a file may have (ulimit -f)",
}


def is_missing(error: OSError) -> bool:
    """Return whether an error says that there is no such file."""
    return error.errno in _MISSING


def describe_os_error(error: OSError) -> str:
    """Return what the system said and, where known, what to do: `reason; advice`."""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0)
    return f"{reason}; {advice}" if advice else reason


def retry_reading(
    read: Callable[[], T], what: object, *, raises: type[HfstackError], remark: str = ""
) -> T:
    """Call a function that reads files, a few times when the system refuses.

    Args:
        read: what to call; it raises OSError where a file cannot be read. That a file is missing
            is an answer, and raised as it is.
        what: the path that a message names.
        raises: the error of a reading that never succeeds, after three pauses of 3.5 s together.
        remark: what the message adds, such as that nothing was changed.
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            return read()
        except OSError as error:
            if is_missing(error) or isinstance(error, HfstackError):
                raise

            place = error.filename if isinstance(error.filename, str | os.PathLike) else what
            if pause_s is None:
                tries = len(_PAUSES_S) + 1
                raise raises(
                    f"{place} could not be read in {tries} tries: {describe_os_error(error)}"
                    f"{remark}"
                ) from error

            reason = error.strerror or error
            logger.warning("%s could not be read (%s): next try in %g s", place, reason, pause_s)
            time.sleep(pause_s)

    raise AssertionError("the last try returns or raises")


def size_of_file(path: Path) -> int | None:
    """Return the size of a file in bytes, or None where there is no file of that name.

    Unlike `Path.is_file`, whose answer may be False for what cannot be looked at as well.
    """
    status = _status(path)
    return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None


def is_folder(path: Path) -> bool:
    """Return whether there is a folder of that name, or raise OSError."""
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _status(path: Path) -> os.stat_result | None:
    """Return what the system knows of a path, or None where there is nothing."""
    try:
        return path.stat()
    except OSError as error:
        if is_missing(error):
            return None
        raise


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path leads into a folder, wherever its links go.

    The one check of what leaves this machine: a link in a run's folder may lead to any file of it,
    and so may a path in a record.
    """
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a circle of links; a name with NUL
        return False


def target_of(path: Path) -> str:
    """Return where a path leads, for a message about its links."""
    try:
        return str(path.resolve())
    except (OSError, ValueError, RuntimeError):
        return "nowhere"


def file_names(folder: Path) -> list[str]:
    """Return the relative names of all files below a folder, sorted.

    Unlike `Path.rglob`, which leaves out what it cannot list.
    """

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for place, _, names in os.walk(folder, onerror=refuse):
        paths = (Path(place) / name for name in names)
        found += [str(path.relative_to(folder)) for path in paths if size_of_file(path) is not None]
    return sorted(found)


def read_regular_file(path: Path, most_bytes: int = MOST_RECORD_BYTES) -> bytes:
    """Return the bytes of a file that somebody else may have made.

    In its place may be a pipe, which would be waited for, or a link to a device such as /dev/zero,
    which never ends.

    Raises:
        ValueError: it is no regular file, or larger than `most_bytes`.
        OSError: it cannot be read.
    """
    # Without waiting for whoever would write into a pipe.
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a pipe or a device, and no file")
        if status.st_size > most_bytes:
            raise ValueError(f"it is larger than {most_bytes >> 20} MiB")
        return file.read()


def read_json_file(path: Path) -> Any:
    """Return the value of a JSON file that somebody else may have made.

    Raises:
        ValueError: it is no file, too large, not JSON, or nested too deeply.
        OSError: it cannot be read.
    """
    try:
        return json.loads(read_regular_file(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


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


def put_in_place(finished: Path, path: Path, *, durable: bool = True) -> None:
    """Give a finished file its name, in place of what had it.

    Args:
        finished: a file in the folder of `path`, with its content on the disk.
        path: the name that readers look for.
        durable: whether to wait until the name would survive a power failure.
    """
    finished.replace(path)
    # The new name is an entry of the folder, which has to reach the disk as well.
    if durable:
        flush_to_disk(path.parent)


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
        put_in_place(partial, path, durable=durable)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which gets its name only once the block has ended.

    A folder of that name stays until then, and is deleted last. When the block raises, it is still
    there. Two processes must not fill the same one at the same time.
    """
    partial, replaced = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    # an earlier process may have been killed between the two renames below, or before
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
    for left in (partial, replaced):
        shutil.rmtree(left, ignore_errors=True)

    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        flush_to_disk(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
