"""Read parallel text: files of one text in several languages, line by line.

The language is what the file's name ends in: `train.en` and `train.de` are the columns `en` and
`de` of `train.{en,de}`; `train.source` and `train.target` are `source` and `target`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePath, PurePosixPath

from hfstack.data.reading.bad_rows import BadRow, Note, NumberedRow, bad_line, too_large
from hfstack.data.reading.files import COMPRESSIONS, DataFile, has_known_suffix, is_archive
from hfstack.data.reading.opening import open_bytes, read_lines
from hfstack.errors import DataError

_LANGUAGES = set(
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy "
    "da de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu "
    "hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb "
    "lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om "
    "or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw "
    "ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu".split()
)
_SIDE_NAMES = {"source", "target", "src", "tgt", "trg", "hyp", "ref"}
# a language of ISO 639, and after it a country or a script: en, zh_CN, eng_Latn
_REGIONAL = re.compile(r"[a-z]{2,3}[-_]([A-Z]{2}|[A-Z][a-z]{3})")
_SIDE = re.compile(r"[A-Za-z][\w-]*", re.ASCII)


def language_of(name: str) -> str | None:
    """Return the language, or the side, that a file's name ends in, or None."""
    _, side, _ = _split_name(name)
    return side if side in _LANGUAGES | _SIDE_NAMES or _REGIONAL.fullmatch(side) else None


def _split_name(path: str) -> tuple[str, str, str]:
    """Return what stands before a name's last suffix, the suffix, and the compression."""
    compression = next((each for each in COMPRESSIONS if path.endswith(each)), "")
    name, _, side = path.removesuffix(compression).rpartition(".")
    return (name, side, compression) if name and _SIDE.fullmatch(side) else (path, "", "")


def parallel_groups(places: Sequence[PurePosixPath]) -> list[dict[str, PurePosixPath]]:
    """Return files by language, those of one text together."""
    groups: dict[tuple[str, str], dict[str, PurePosixPath]] = {}
    for place in sorted(places):
        name, _, compression = _split_name(str(place))
        if language := language_of(place.name):
            groups.setdefault((name, compression), {})[language] = place
    return list(groups.values())


def join_parallel(paths: Sequence[str]) -> list[tuple[int, str]]:
    """Join files beside each other: `train.{en,de}` for `train.en` and `train.de`.

    Files that differ in their last suffix alone are such a pair, whatever the suffixes are called,
    where none is the name of a format.

    Returns:
        The paths, each with the place of its first file in `paths`.
    """
    groups: dict[tuple[str, ...], dict[str, int]] = {}
    for index, path in enumerate(paths):
        name, side, compression = _split_name(path)
        is_side = side and not has_known_suffix(path) and not is_archive(PurePath(path))

        key = (name, compression)
        if not is_side or not Path(path).is_file() or side in groups.get(key, {}):
            key = (str(index),)
        groups.setdefault(key, {})[side] = index

    joined = []
    for key, sides in groups.items():
        first = min(sides.values())
        path = paths[first]
        if len(sides) > 1:
            path = f"{key[0]}.{{{','.join(sides)}}}{key[1]}"
        joined.append((first, path))
    return joined


def parallel_file(files: dict[str, DataFile]) -> DataFile:
    """Return files by the language of each as one file of rows."""
    first, *beside = files.values()
    return DataFile(
        first.path,
        "parallel",
        first.compression,
        first.member,
        beside=tuple(beside),
        columns=tuple(files),
    )


def files_in_braces(path: str) -> DataFile:
    """Return the file of rows that `train.{en,de}` means.

    Raises:
        DataError: one of them is not there.
    """
    name, _, rest = path.partition("{")
    sides, _, compression = rest.partition("}")
    files: dict[str, DataFile] = {}
    for side in sides.split(","):
        one = Path(f"{name}{side}{compression}").expanduser()
        if not one.is_file():
            raise DataError(f"{one}: no such file, of the parallel text {path}")
        files[side] = DataFile(one, "parallel", compression)
    return parallel_file(files)


def read_parallel(file: DataFile, note: Note) -> Iterator[NumberedRow]:
    """Yield the lines of the files as rows with a column for each, blank ones too.

    Raises:
        DataError: the files have other numbers of lines, so that nobody knows which belong
            together. It is found before the first row.
    """
    files = [replace(file, beside=()), *file.beside]
    if len(files) > 1:
        _check_lengths(files)
        note(f"one row is a line, with the columns {', '.join(file.columns)} of parallel text")
    else:
        note(f"one row is a line, as the column {file.columns[0]}")

    with ExitStack() as stack:
        opened = [stack.enter_context(open_bytes(one)) for one in files]
        beside = [read_lines(file, stream) for stream in opened]
        for number, lines in enumerate(zip(*beside, strict=False), 1):
            if sum(map(len, lines)) > file.max_row_bytes:
                yield number, too_large(file.max_row_bytes), None
                continue
            try:
                texts = [line.decode().rstrip("\r\n") for line in lines]
            except UnicodeDecodeError:
                yield number, _undecoded(files, opened, lines), None
                continue
            yield number, dict(zip(file.columns, texts, strict=True)), None


def _undecoded(files: list[DataFile], opened: Sequence, lines: Sequence[bytes]) -> BadRow:
    """Say which of the lines of a row is no UTF-8."""
    for file, stream, line in zip(files, opened, lines, strict=True):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            bad = bad_line(error, stream, line)
            return BadRow(bad.reason, f"{file.name}: {bad.detail}")
    raise AssertionError("one of the lines cannot be decoded")


def _check_lengths(files: list[DataFile]) -> None:
    counts = [_count_lines(file) for file in files]
    if len(set(counts)) > 1:
        found = ", ".join(f"{file} has {count}" for file, count in zip(files, counts, strict=True))
        raise DataError(
            f"parallel text needs as many lines in each file, blank ones too, but {found} lines"
        )


def _count_lines(file: DataFile) -> int:
    """Return how many lines a file has; the last one may have no end."""
    count, last = 0, b"\n"
    with open_bytes(file) as stream:
        while chunk := stream.read(1 << 20):
            count += chunk.count(b"\n")
            last = chunk
    return count + (not last.endswith(b"\n"))
