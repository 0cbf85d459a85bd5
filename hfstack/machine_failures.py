"""Tell a failure of the machine from a bug: its disk, its memory, its limits.

A bug keeps its traceback, which says where it is. A traceback of a disk that fails says nothing
that its user could act on, and comes from whichever library touched the disk.
"""

import errno
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from hfstack.disk import describe_os_error
from hfstack.errors import HfstackError

# What the file system answers when it is the machine, or its limits for this user, that fails.
# That a file is missing is none of these: it may as well be a bug.
_CODES = frozenset(
    {
        *(errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.EROFS, errno.EACCES),
        *(errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT),
        *(errno.EFBIG, errno.EUCLEAN, errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO),
    }
)

# Libraries in C++ and Rust put the system's answer into a text, some with its number.
_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)|\bErrno (\d+)\b|[Ee]rror code (\d+)\b")
_IN_WORDS = {os.strerror(code): code for code in _CODES - {errno.EACCES, errno.EPERM}}
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|std::bad_alloc")
_FILE_ADVICE = (
    "a file could not be written or read to its end; look at the disk that it lies on, and at the "
    "number of files that may be open (ulimit -n)"
)
_OTHER_FAILURES = {
    "can't start new thread": "the system starts no more threads; raise the number of processes "
    "that this user may have (ulimit -u), or lower --dataloader_num_workers",
    "received 0 items of ancdata": "too many open files; raise the number of files that may be "
    "open (ulimit -n)",
    # torch's, of a worker that the system killed
    "DataLoader worker (pid": "a process that loads data was killed, most often because memory ran "
    "out; lower --dataloader_num_workers, or give the machine more memory",
    "inline_container.cc": _FILE_ADVICE,
    # C++'s own streams, by which torch writes a checkpoint, keep the reason to themselves
    "basic_ios::clear": _FILE_ADVICE,
}
_MEMORY_ADVICE = (
    "memory ran out; lower --per_device_train_batch_size (and raise --gradient_accumulation_steps "
    "as much), the length of a row, or the number of other programs"
)
# What Python itself raises on a mistake in a program, whatever it was doing at that time.
_MISTAKES_OF_PROGRAMS = (
    *(TypeError, AttributeError, NameError, AssertionError, LookupError),
    *(NotImplementedError, RecursionError, ArithmeticError),
)


def says_disk_is_full(error: BaseException) -> bool:
    """Return whether an error, of whichever library, means that the disk is full."""
    words = (
        *("No space left", "os error 28", "Disk quota", "File too large"),
        # torch.save says neither why nor where
        *("PytorchStreamWriter failed writing", "unexpected pos"),
    )
    return any(word in str(each) for each in _chain_of_causes(error) for word in words)


def describe_failure(error: BaseException) -> str | None:
    """Return what failed of the machine and what to do: `place: reason; advice`.

    None for everything else: a user's mistake, and a bug.
    """
    if isinstance(error, (HfstackError, *_MISTAKES_OF_PROGRAMS)):
        return None
    for each in _chain_of_causes(error):
        reason = _reason_of(each)
        if reason is not None:
            return f"{_place_of(each)}: {reason}"
    return None


def says_missing(error: BaseException) -> bool:
    """Return whether an error means that a file or a folder is not there."""
    words = ("os error 2)", "os error 20)", "Parent directory", "No such file or directory")
    return any(
        isinstance(each, FileNotFoundError | NotADirectoryError)
        or any(word in str(each) for word in words)
        for each in _chain_of_causes(error)
    )


def _chain_of_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from, or while handling."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )


def _reason_of(error: BaseException) -> str | None:
    """Return the reason and the advice of one error of a chain, or None."""
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _MEMORY_ADVICE
    if isinstance(error, OSError):
        if error.errno == errno.ENOMEM:
            return _MEMORY_ADVICE
        # Some libraries make an OSError out of a text alone.
        if error.errno is not None:
            return describe_os_error(error) if error.errno in _CODES else None
    elif not isinstance(error, RuntimeError) and type(error).__module__ == "builtins":
        return None

    if _NO_MEMORY.search(text):
        return _MEMORY_ADVICE
    numbers = [int(next(filter(None, found))) for found in _ERROR_NUMBER.findall(text)]
    numbers += [code for words, code in _IN_WORDS.items() if words in text]
    if code := next((number for number in numbers if number in _CODES), None):
        known = OSError(code, os.strerror(code))
        return _MEMORY_ADVICE if code == errno.ENOMEM else describe_os_error(known)
    return next((advice for words, advice in _OTHER_FAILURES.items() if words in text), None)


def _place_of(error: BaseException) -> str:
    """Return the file that an error names, or else the line of code that raised it."""
    if isinstance(error, OSError) and isinstance(error.filename, str | os.PathLike):
        return str(error.filename)
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    last = frames[-1]
    place = "/".join(Path(last.filename).parts[-2:])
    return f"{type(error).__name__} at {place}:{last.lineno}"
