"""Say what a local file is by its name, and hash it."""

import functools
import glob
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal

from hfstack.disk import hash_file, is_missing, retry_reading
from hfstack.errors import DataError

MOST_ROW_MIB = 64
Document = Literal["auto", "file", "paragraph", "line"]

FORMATS = (
    *("jsonl", "ndjson", "json", "csv", "tsv", "parquet", "arrow", "feather"),
    *("txt", "conll", "conllu"),
)
_SAME = {"ndjson": "jsonl", "feather": "arrow"}  # other names of formats
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
_TARS = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz)$", re.IGNORECASE)
_BRACES = re.compile(r".+\.\{[^{},/]+(,[^{},/]+)+\}(\.[a-z0-9]+)?")
_SUFFIX = re.compile(
    rf"\.({'|'.join(FORMATS)})({'|'.join(map(re.escape, COMPRESSIONS))})?$", re.IGNORECASE
)


@dataclass(frozen=True)
class DataFile:
    """A local file of rows: where it is, and how it must be read."""

    path: Path
    format: str  # one of FORMATS, or parallel
    compression: str  # a suffix of COMPRESSIONS, or empty for a plain file
    member: str = ""  # the name in a zip archive, where `path` is one
    document: Document = "auto"  # of a txt file: what one document is
    label: str | None = None  # of a document: the folder that it is in, where folders are classes
    max_row_bytes: int = MOST_ROW_MIB << 20
    beside: tuple["DataFile", ...] = ()  # of parallel text: the other languages' files
    columns: tuple[str, ...] = ()  # of parallel text: the language of each file

    def __str__(self) -> str:
        if self.beside:
            alone = replace(self, beside=())
            return " and ".join([str(alone), *(one.name for one in self.beside)])
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """Return the file's name without its folder."""
        return PurePath(self.member or self.path).name

    @property
    def paths(self) -> list[Path]:
        """Return where the bytes are that are read."""
        return [self.path, *(one.path for one in self.beside)]

    @property
    def is_table(self) -> bool:
        """Return whether the rows are lines of cells below a header."""
        return self.format in ("csv", "tsv")

    @property
    def is_binary(self) -> bool:
        """Return whether the bytes are no text."""
        return self.format in ("parquet", "arrow")


def data_file(path: Path, *, member: str = "") -> DataFile:
    """Return a file with the format and the compression that its name states.

    Args:
        path: of the file, or of the zip archive that holds it.
        member: its name in the archive.

    Raises DataError when the name states no known format.
    """
    match = _SUFFIX.search(member or path.name)
    if not match and _TARS.search(path.name):
        raise DataError(
            f"{path}: tar archives are not read, since a file in one can only be reached through "
            "all before it: unpack it (mkdir data && tar -xf FILE -C data) and name the folder, "
            "or pack it as .zip"
        )
    if not match:
        raise DataError(
            f"{path}: unknown kind of file; the name must end in one of {known_suffixes()}, each "
            f"also with {', '.join(COMPRESSIONS)}, or in .zip"
        )

    name, compression = match[1].lower(), (match[2] or "").lower()
    return DataFile(path, _SAME.get(name, name), compression, member)


def known_suffixes() -> str:
    """Return the suffixes of the formats, for a message."""
    return ", ".join(f".{name}" for name in FORMATS)


def has_known_suffix(name: str) -> bool:
    """Return whether a file's name states a format."""
    return _SUFFIX.search(name) is not None


def is_archive(path: PurePath) -> bool:
    """Return whether a file's name says that it is a zip archive."""
    return path.suffix.lower() == ".zip"


def is_in_braces(path: str) -> bool:
    """Return whether a path means files of several languages: `train.{en,de}`."""
    return _BRACES.fullmatch(path) is not None


def looks_local(path: str) -> bool:
    """Return whether a path means local files.

    It exists, or has a glob character, languages in braces, a data suffix, or a leading `.` `/`
    `~`.
    """
    return (
        has_known_suffix(path)
        or is_archive(PurePath(path))
        or _TARS.search(path) is not None
        or path[:1] in "./~"
        or glob.has_magic(path)
        or is_in_braces(path)
        or _is_there(path)
    )


def _is_there(path: str) -> bool:
    """Return whether something has this name; one that is too long is that of nothing."""
    try:
        return Path(path).exists()
    except OSError as error:
        if is_missing(error):
            return False
        raise


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


@functools.lru_cache(maxsize=1 << 17)
def _hash_once(path: Path, size_bytes: int, mtime_ns: int) -> str:
    """Hash a file once per process.

    Size and time are here so that a changed file is hashed again.
    """
    return retry_reading(lambda: hash_file(path), path, raises=DataError)
