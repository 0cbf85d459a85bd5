"""Find the local files that a path means, open them decompressed, and hash them."""

import difflib
import functools
import glob
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from hfstack.disk import hash_file, retry_reading
from hfstack.errors import DataError
from hfstack.logs import get_logger

logger = get_logger(__name__)

FORMATS = ("jsonl", "ndjson", "json", "csv", "tsv", "parquet", "txt")
_SUFFIX = re.compile(rf"\.({'|'.join(FORMATS)})(\.gz|\.zst)?$", re.IGNORECASE)
_SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
}
_SPLIT_WORD = re.compile(rf"(?:^|[-_.])({'|'.join(_SPLIT_NAMES)})(?=[-_.]|$)", re.IGNORECASE)
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}


@dataclass(frozen=True)
class DataFile:
    """A local file of rows: where it is, and how its name says it must be read."""

    path: Path
    format: str  # jsonl, json, csv, tsv, parquet or txt
    compression: str  # .gz, .zst, or empty for a plain file

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_table(self) -> bool:
        """Whether the rows are lines of cells below a header."""
        return self.format in ("csv", "tsv")


def data_file(path: Path) -> DataFile:
    """Return a file with the format and the compression that its name states.

    Raises DataError when the name states no known format.
    """
    match = _SUFFIX.search(path.name)
    if not match:
        known = ", ".join(f".{name}" for name in FORMATS)
        raise DataError(
            f"{path}: unknown kind of file; the name must end in one of {known}, each also with "
            ".gz or .zst"
        )

    name, compression = match[1].lower(), (match[2] or "").lower()
    return DataFile(path, "jsonl" if name == "ndjson" else name, compression)


def looks_local(path: str) -> bool:
    """Return whether a path means local files.

    It exists, or has a glob character, a data suffix, or a leading `.` `/` `~`.
    """
    return (
        bool(_SUFFIX.search(path))
        or path[:1] in "./~"
        or glob.has_magic(path)
        or Path(path).exists()
    )


def expand_files(path: str, split: str = "train") -> list[DataFile]:
    """Return the files that a file name, glob or folder means, in sorted order.

    A folder whose file names carry split names (train.jsonl, test-00001.parquet) gives the files of
    `split` only; one that holds a single split gives it whatever its name. Raises DataError when
    there are none, or when a folder mixes formats.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [data_file(place)]
    if place.is_dir():
        return _files_of_folder(place, split)

    if glob.has_magic(path):
        names = glob.glob(str(place), recursive=True)  # noqa: PTH207  Path.glob refuses absolute patterns
        found = sorted(file for file in map(Path, names) if file.is_file())
        if not found:
            raise DataError(f"{path}: no file matches this pattern")
        return [data_file(file) for file in found]

    siblings = [file.name for file in place.parent.iterdir()] if place.parent.is_dir() else []
    close = difflib.get_close_matches(place.name, siblings, n=1)
    hint = f"; did you mean {place.parent / close[0]}?" if close else ""
    raise DataError(f"{path}: no such file{hint}")


def _files_of_folder(folder: Path, split: str) -> list[DataFile]:
    paths = [
        path
        for path in folder.rglob("*")
        if _SUFFIX.search(path.name)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]

    files = _files_of_split(folder, sorted(paths), split)
    if not files:
        known = ", ".join(f".{name}" for name in FORMATS)
        raise DataError(f"{folder}: this folder holds no data file ({known})")

    formats = sorted({file.format for file in files})
    if len(formats) > 1:
        hint = f"choose by a glob, e.g. '{folder}/*.{formats[0]}'"
        raise DataError(f"{folder}: this folder mixes {' and '.join(formats)} files; {hint}")

    return files


def _files_of_split(folder: Path, paths: list[Path], split: str) -> list[DataFile]:
    """Return the files of a split by their names; all where no name carries a split."""
    splits = {}
    for path in paths:
        if match := _SPLIT_WORD.search(path.name):
            splits[path] = _SPLIT_NAMES[match[1].lower()]

    # A folder that holds nothing but its test split is what the user wants to train on.
    single = split == "train" and len(splits) == len(paths) and len(set(splits.values())) == 1
    if not splits or single:
        return [data_file(path) for path in paths]

    chosen = [path for path in paths if splits.get(path) == _SPLIT_NAMES.get(split, split)]
    if not chosen:
        have = ", ".join(sorted(set(splits.values())))
        raise DataError(
            f"{folder}: no file for the split {split!r}; the names give {have}; name the files or "
            "a glob"
        )

    if left_out := [path.name for path in paths if path not in chosen]:
        logger.info(
            "%s: split %s is %d of %d files; left out: %s",
            folder,
            split,
            len(chosen),
            len(paths),
            left_out[:5],
        )

    return [data_file(path) for path in chosen]


def fingerprint(path: Path) -> dict[str, Any]:
    """Return `{"path", "bytes", "blake2b"}` of a file.

    The digest is 16 bytes in hex, over the bytes as stored.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it could not be read.
    """
    status = retry_reading(path.stat, path, raises=DataError)
    return {
        "path": str(path),
        "bytes": status.st_size,
        "blake2b": _hash_once(path, status.st_size, status.st_mtime_ns),
    }


@functools.lru_cache(maxsize=4096)
def _hash_once(path: Path, size_bytes: int, mtime_ns: int) -> str:
    """Hash a file once per process.

    Size and time are here so that a changed file is hashed again.
    """
    return retry_reading(lambda: hash_file(path), path, raises=DataError)


@contextmanager
def open_bytes(file: DataFile) -> Iterator[io.BufferedReader]:
    """Open a file for reading, decompressed and without a UTF-8 byte order mark.

    Raises DataError, naming the file, when it cannot be opened, is damaged, or ends in the middle
    of compressed data.
    """
    try:
        with file.path.open("rb") as stored:
            stream = _decompress(file, stored)

            # Byte order marks: UTF-8's is skipped, UTF-16's is a reason to refuse the file.
            if stream.peek(3)[:3] == b"\xef\xbb\xbf":
                stream.read(3)
            elif stream.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{file}: this file is UTF-16; convert it to UTF-8")

            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DataError(
            f"{file}: truncated or damaged compressed file: {error}; download or create it again"
        ) from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def _decompress(file: DataFile, stored: BinaryIO) -> io.BufferedReader:
    """Return the plain bytes of a file.

    Raises DataError when its name and its content disagree.
    """
    head = stored.read(4)
    stored.seek(0)
    found = next((suffix for magic, suffix in _MAGIC.items() if head.startswith(magic)), "")
    named = file.compression

    if found and not named:
        raise DataError(f"{file}: this file is compressed; rename it to {file.path.name}{found}")

    if named != found:
        cause = f"is {found}, not {named}" if found else "is not compressed"
        if not head:
            cause = "is empty"
        raise DataError(
            f"{file}: the name ends in {named} but the file {cause}; rename it or download it again"
        )

    raw: Any = stored  # GzipFile has readinto, which is all that BufferedReader asks for
    if named == ".gz":
        raw = gzip.GzipFile(fileobj=stored)
    elif named == ".zst":
        raw = _ZstdFile(stored)
    return io.BufferedReader(raw, 1 << 20)


class _ZstdFile(io.RawIOBase):
    """Decompressed bytes of a .zst file of one or more frames.

    zstandard's own reader ends silently where a file is truncated, so the end of every frame is
    checked here.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame: Any = None
        self._compressed = b""
        self._plain = b""
        self._position = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            chunk = self._compressed or self._file.read(1 << 16)
            self._compressed = b""

            if not chunk:
                if self._frame is not None:
                    raise EOFError("it ends in the middle of a zstd frame")
                return 0

            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._plain = self._frame.decompress(chunk)

            # What follows the end of a frame belongs to the next one.
            if self._frame.eof:
                self._compressed = self._frame.unused_data
                self._frame = None

        size = min(len(buffer), len(self._plain))
        buffer[:size] = self._plain[:size]
        self._plain = self._plain[size:]
        self._position += size

        return size
