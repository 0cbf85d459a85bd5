"""Read damaged files a second time with the standard library alone, to judge what came out."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.decompress,
    "xz": lzma.decompress,
    "bz2": bz2.decompress,
    "zst": lambda content: zstandard.ZstdDecompressor().stream_reader(content).read(),
}


def find_foreign_rows(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> list[Any]:
    """Return the rows that the file does not hold, in the order in which it holds them.

    A Parquet file and cells of another table than the one that was damaged have no second reader.
    """
    text = _unpacked_text(path)
    form = path.name.split(".")[1]
    if text is None or form == "parquet" or (form in ("csv", "tsv") and [*rows[0]] != columns):
        return []

    if form in ("jsonl", "zip"):
        return _not_in_order(rows, _json_lines(text))
    if form == "json":
        # an object of objects, or lines under the wrong name
        held = _json_or_none(text)
        return [] if not isinstance(held, list) else _not_in_order(rows, iter(held))
    if form in ("csv", "tsv"):
        # quotes are characters of a tsv file
        dialect: Any = (
            {}
            if form == "csv"
            else {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
        )
        cells = csv.reader(io.StringIO(text, newline=""), **dialect)
        return _not_in_order(rows, (dict(zip(columns, line, strict=False)) for line in cells))

    # of texts and of tagged words: nothing that does not stand there
    words = [word for row in rows for value in row.values() for word in _words(value)]
    return [word for word in words if word not in " ".join(text.split())]


def _unpacked_text(path: Path) -> str | None:
    content = path.read_bytes()
    packing = path.name.split(".")[-1]
    try:
        if packing == "zip":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                content = b"".join(archive.read(name) for name in archive.namelist())
        elif packing in _UNPACK:
            content = _UNPACK[packing](content)
    except Exception:
        return None
    return content.decode("utf-8-sig", errors="surrogateescape")


def _json_lines(text: str) -> Iterator[Any]:
    for line in text.split("\n"):
        yield _json_or_none(line)


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _not_in_order(rows: list[dict[str, Any]], held: Iterator[Any]) -> list[Any]:
    """Return the first row that does not follow the one before it in what the file holds."""
    for row in rows:
        if not any(_is_same(row, one) for one in held):
            return [row]
    return []


def _is_same(row: Any, held: Any) -> bool:
    if not isinstance(held, dict) or row.keys() != held.keys():
        return False
    return all(_is_same_cell(value, held[name]) for name, value in row.items())


def _is_same_cell(value: Any, held: Any) -> bool:
    """Return whether a value is what JSON or a cell of a table says."""
    if isinstance(value, bool) or isinstance(held, bool):
        return value is held
    if isinstance(held, str) and isinstance(value, int | float):
        return _number(held) == value
    if value is None:
        return held in (None, "")
    return value == held


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _words(value: Any) -> Iterator[str]:
    for text in value if isinstance(value, list) else [value]:
        yield " ".join(str(text).split())
