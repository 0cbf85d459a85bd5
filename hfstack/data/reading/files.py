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
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from hfstack.disk import hash_file
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


def file_format(path: Path) -> str:
    """Return `jsonl`, `json`, `csv`, `tsv`, `parquet` or `txt` from a file's name.

    DataError when it is none.
    """
    if not (match := _SUFFIX.search(path.name)):
        known = ", ".join(f".{name}" for name in FORMATS)
        raise DataError(
            f"{path}: unknown kind of file; the name must end in one of {known}, each also with "
            ".gz or .zst"
        )
    name = match[1].lower()
    return "jsonl" if name == "ndjson" else name


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


def expand_files(path: str, split: str = "train") -> list[Path]:
    """Return the files that a file name, glob or folder means, in sorted order.

    A folder whose file names carry split names (train.jsonl, test-00001.parquet) gives the files of
    `split` only; one that holds a single split gives it whatever its name. Raises DataError when
    there are none, or when a folder mixes formats."""
    place = Path(path).expanduser()
    if place.is_file():
        file_format(place)
        return [place]
    if place.is_dir():
        return _files_of_folder(place, split)

    if glob.has_magic(path):
        names = glob.glob(str(place), recursive=True)  # noqa: PTH207  Path.glob refuses absolute patterns
        found = sorted(file for name in names if (file := Path(name)).is_file())
        if not found:
            raise DataError(f"{path}: no file matches this pattern")
        for file in found:
            file_format(file)
        return found

    siblings = [file.name for file in place.parent.iterdir()] if place.parent.is_dir() else []
    close = difflib.get_close_matches(place.name, siblings, n=1)
    raise DataError(
        f"{path}: no such file" + (f"; did you mean {place.parent / close[0]}?" if close else "")
    )


def _files_of_folder(folder: Path, split: str) -> list[Path]:
    names = (file for file in folder.rglob("*") if _SUFFIX.search(file.name) and file.is_file())
    files = sorted(
        file for file in names if not any(part[0] == "." for part in file.relative_to(folder).parts)
    )
    splits = {
        file: _SPLIT_NAMES[match[1].lower()]
        for file in files
        if (match := _SPLIT_WORD.search(file.name))
    }

    single = split == "train" and len(splits) == len(files) and len(set(splits.values())) == 1
    if splits and not single:
        chosen = [file for file in files if splits.get(file) == _SPLIT_NAMES.get(split, split)]
        if not chosen:
            have = ", ".join(sorted(set(splits.values())))
            raise DataError(
                f"{folder}: no file for the split {split!r}; the names give {have}; name the "
                "files or a glob"
            )

        if left := [file.name for file in files if file not in chosen]:
            logger.info(
                "%s: split %s is %d of %d files; left out: %s",
                folder,
                split,
                len(chosen),
                len(files),
                left[:5],
            )

        files = chosen

    if not files:
        raise DataError(
            f"{folder}: this folder holds no data file "
            f"({', '.join(f'.{name}' for name in FORMATS)})"
        )

    if len(formats := sorted({file_format(file) for file in files})) > 1:
        hint = f"choose by a glob, e.g. '{folder}/*.{formats[0]}'"
        raise DataError(f"{folder}: this folder mixes {' and '.join(formats)} files; {hint}")

    return files


def fingerprint(path: Path) -> dict[str, Any]:
    """Return `{"path", "bytes", "blake2b"}` of a file.

    The digest is 16 bytes in hex, over the bytes as stored.
    """
    status = path.stat()
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
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading, decompressed and without a UTF-8 byte order mark.

    Raises DataError, naming the file, when it cannot be opened, is damaged, or ends in the middle
    of compressed data.
    """
    try:
        with path.open("rb") as file:
            stream = _decompressed(path, file)
            if stream.peek(3)[:3] == b"\xef\xbb\xbf":
                stream.read(3)
            elif stream.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{path}: this file is UTF-16; convert it to UTF-8")
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DataError(
            f"{path}: truncated or damaged compressed file: {error}; fetch or write it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decompressed(path: Path, file: BinaryIO) -> io.BufferedReader:
    head = file.read(4)
    file.seek(0)
    found = next((suffix for magic, suffix in _MAGIC.items() if head.startswith(magic)), "")

    named = path.suffix.lower() if path.suffix.lower() in (".gz", ".zst") else ""
    if named != found:
        if not named:
            raise DataError(f"{path}: this file is compressed; rename it to {path.name}{found}")

        cause = (
            "is empty"
            if not head
            else "is not compressed"
            if not found
            else f"is {found}, not {named}"
        )

        raise DataError(
            f"{path}: the name ends in {named} but the file {cause}; rename it or fetch it again"
        )

    if named == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=file), 1 << 20)  # type: ignore[arg-type]  # has readinto
    return io.BufferedReader(_ZstdFile(file) if named else file, 1 << 20)  # type: ignore[arg-type]


class _ZstdFile(io.RawIOBase):
    """Decompressed bytes of a .zst file of one or more frames.

    zstandard's own reader ends silently where a file was cut, so the end of every frame is checked
    here."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame: Any = None
        self._compressed = self._plain = b""
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

            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None

        size = min(len(buffer), len(self._plain))
        buffer[:size] = self._plain[:size]
        self._plain = self._plain[size:]
        self._position += size

        return size
