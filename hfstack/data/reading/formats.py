"""Read one local file of any known format as numbered rows.

A row that cannot be read comes out as a BadRow.
"""

import codecs
import csv
import io
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow
import pyarrow.parquet

from hfstack.data.reading.files import file_format, open_bytes
from hfstack.errors import DataError
from hfstack.logs import get_logger

logger = get_logger(__name__)


@dataclass(slots=True)
class BadRow:
    """Why a row cannot be used: a reason to count by, and what is wrong with it."""

    reason: str
    detail: str


# (line where the row begins, counted from 1; the row; its text in the file, where a row is a line)
NumberedRow = tuple[int, dict[str, Any] | BadRow, str | None]


_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_END_OF_TEXT = "<|endoftext|>"


def read_file(path: Path) -> Iterator[NumberedRow]:
    """Yield every row of a file in constant memory.

    DataError when the file as a whole cannot be read.
    """
    match file_format(path):
        case "jsonl":
            return _read_jsonl(path)
        case "json":
            return _read_json(path)
        case "csv":
            return _read_delimited(path, ",")
        case "tsv":
            return _read_delimited(path, "\t")
        case "parquet":
            return _read_parquet(path)
        case _:
            return _read_txt(path)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(
            f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice in one "
            "object"
        )
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value; use null")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)


def _read_jsonl(path: Path) -> Iterator[NumberedRow]:
    decode_at = _DECODER.raw_decode
    seen = False

    with open_bytes(path) as lines:
        for number, line in enumerate(lines, 1):
            text = None
            try:
                text = line.decode()
                row, end = decode_at(text)
                if end < len(text) - 1 and text[end:].strip():
                    row = _DECODER.decode(text)  # raises "Extra data" with its column
            except (ValueError, RecursionError) as error:
                if not line.strip():
                    continue

                try:
                    row = (
                        _DECODER.decode(text)
                        if text and text[0].isspace()
                        else _bad_line(error, lines, line)
                    )
                except (ValueError, RecursionError) as again:
                    row = _bad_line(again, lines, line)

                if not seen:
                    _refuse_other_format(path, number, line)

            seen = True
            if type(row) is not dict:
                if type(row) is not BadRow:
                    row = BadRow(
                        "not an object",
                        f"expected an object {{...}}, got {text and text.strip()[:40]}",
                    )
            elif b"\\u" in line and (place := _lone_surrogate(row)):
                row = BadRow(
                    "broken character",
                    f"half of a surrogate pair in {place!r}, which no UTF-8 text can hold",
                )

            yield number, row, text if text is not None else line.decode(errors="backslashreplace")


def _bad_line(error: Exception, lines: io.BufferedReader, line: bytes) -> BadRow:
    """Turn what went wrong with the line just read into a BadRow."""
    match error:
        case UnicodeDecodeError():
            offset = lines.tell() - len(line) + error.start
            return BadRow(
                "invalid UTF-8",
                f"invalid UTF-8 at byte {offset} of the file (0x{line[error.start]:02x})",
            )
        case json.JSONDecodeError():
            column = min(error.pos, len(error.doc.rstrip("\r\n"))) + 1
            near = error.doc[error.pos : error.pos + 20].strip()
            got = repr(near) if near else "the end of the line"
            return BadRow("bad JSON", f"column {column}: {error.msg}, got {got}")
        case RecursionError():
            return BadRow("bad JSON", "objects are nested too deeply")

    return BadRow("bad JSON", str(error))


def _lone_surrogate(row: dict[str, Any]) -> str | None:
    """Return the key whose value holds half of a surrogate pair, or None.

    JSON can spell it, UTF-8 and Arrow cannot.
    """
    for key, value in row.items():
        try:
            (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
        except UnicodeEncodeError:
            return key
    return None


def _refuse_other_format(path: Path, number: int, line: bytes) -> None:
    """Raise DataError when the first line shows that a file is not JSON lines."""
    text = line.decode(errors="replace").strip()
    if text == "{" or (text.startswith("[") and not text.endswith("]")):
        wanted = (
            "one object per line"
            if text == "{"
            else "one object per line; if it is a JSON array, rename it to .json"
        )
        raise DataError(
            f"{path} line {number}: this is one JSON document over several lines, expected {wanted}"
        )

    if text[:1] not in '{["' and re.search(r"[,;\t]", text):
        raise DataError(
            f"{path} line {number}: this looks like a table with a header ({text[:40]!r}); rename "
            "it to .csv or .tsv"
        )


def _read_json(path: Path) -> Iterator[NumberedRow]:
    with open_bytes(path) as file:
        first = file.peek(1).lstrip()[:1]
        if first == b"[":
            yield from _JsonArray(path, file).rows()
            return
    yield from _read_jsonl(path)


class _JsonArray:
    """The objects of one JSON array, read without holding it.

    A syntax error ends the file, so it is a DataError.
    """

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._line, self._finished = "", 0, 1, False

    def rows(self) -> Iterator[NumberedRow]:
        self._take("[")
        if self._next_character() != "]":
            yield self._value()
            while self._take(",]") == ",":
                yield self._value()
        if self._text[self._at + 1 :].strip() or self._file.read(1 << 10).strip():
            raise DataError(f"{self._path} line {self._line}: more text after the end of the array")

    def _value(self) -> NumberedRow:
        self._next_character()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                # a number may go on in the next chunk
                if end == len(self._text) and self._read_more():
                    continue
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - 16
                if cut and self._read_more():
                    continue
                line = self._line + self._text.count("\n", self._at, error.pos)
                raise DataError(
                    f"{self._path} line {line}: {error.msg}; if the file was cut, write it again"
                ) from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self._path} line {self._line}: {error}") from error

            line = self._line
            self._move(end)
            return (
                line,
                value
                if isinstance(value, dict)
                else BadRow("not an object", "expected an object {...}"),
                None,
            )

    def _take(self, allowed: str) -> str:
        character = self._next_character()
        if character not in allowed:
            wanted = " or ".join(repr(each) for each in allowed)
            raise DataError(f"{self._path} line {self._line}: expected {wanted}, got {character!r}")
        self._at += 1
        return character

    def _next_character(self) -> str:
        """Skip white space; return the character after it, without taking it."""
        while True:
            self._move(_SPACE.match(self._text, self._at).end())  # type: ignore[union-attr]  # \s* always matches
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                raise DataError(
                    f"{self._path} line {self._line}: the array is never closed; the file was cut"
                )

    def _move(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _read_more(self) -> bool:
        """Append the next chunk.

        Chunks grow with what is pending, so that a large row is not scanned too often.
        """
        self._text, self._at = self._text[self._at :], 0
        chunk = self._file.read(max(1 << 18, len(self._text)))
        try:
            self._text += self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            offset = self._file.tell() - len(error.object) + error.start
            raise DataError(f"{self._path}: invalid UTF-8 at byte {offset} of the file") from error
        return bool(chunk)


def _read_delimited(path: Path, delimiter: str) -> Iterator[NumberedRow]:
    csv.field_size_limit(1 << 30)  # Python's own limit of 131072 refuses long documents
    with open_bytes(path) as lines:
        damaged: list[BadRow] = []
        reader = csv.reader(_decoded(lines, damaged), delimiter=delimiter, strict=True)

        try:
            header = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path} line 1: malformed header: {error}") from error

        if header is None:
            return
        if damaged:
            raise DataError(f"{path} line 1: {damaged[0].detail}")
        _check_header(path, header, delimiter)

        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                detail = (
                    "a quoted cell begins here and never ends"
                    if "unexpected end" in str(error)
                    else str(error)
                )
                yield number, BadRow("malformed csv", detail), None
                continue

            if cells is None:
                return

            if damaged:
                yield number, damaged[0], delimiter.join(cells)
                damaged.clear()
            elif len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True)), None
            elif cells:
                detail = f"{len(cells)} cells where the header has {len(header)}"
                yield number, BadRow("ragged row", detail), delimiter.join(cells)


def _decoded(lines: io.BufferedReader, damaged: list[BadRow]) -> Iterator[str]:
    """Decode lines; mark the ones that are not UTF-8 in `damaged`.

    They are passed on with replacement characters.
    """
    for line in lines:
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            damaged.append(_bad_line(error, lines, line))
            yield line.decode(errors="backslashreplace")


def _check_header(path: Path, header: list[str], delimiter: str) -> None:
    """Raise DataError when the first line is no header of this kind of table."""
    place = f"{path} line 1"
    first = delimiter.join(header).strip()
    if first[:1] in "{[":
        raise DataError(
            f"{place}: this looks like JSON, not a table ({first[:40]!r}); rename it to .jsonl or "
            ".json"
        )

    others = [mark for mark in ",;\t|" if mark != delimiter and mark in first]
    if len(header) == 1 and others:
        hint = (
            "rename it to .tsv"
            if others[0] == "\t"
            else "rename it to .csv"
            if others[0] == ","
            else "write it with commas"
        )

        raise DataError(
            f"{place}: the columns are separated by {others[0]!r}, not by {delimiter!r}; {hint}"
        )

    if "" in header:
        index = (
            "; pandas writes such a column for its index: to_csv(index=False)"
            if header[0] == ""
            else ""
        )
        raise DataError(f"{place}: column {header.index('') + 1} of the header has no name{index}")

    if double := [name for name in header if header.count(name) > 1]:
        raise DataError(f"{place}: the header names the column {double[0]!r} twice")

    if numbers := [name for name in header if _NUMBER.fullmatch(name)]:
        raise DataError(
            f"{place}: no header: {numbers[0]!r} is a number, not the name of a column; add a "
            "line of names"
        )


def _read_parquet(path: Path) -> Iterator[NumberedRow]:
    with open_bytes(path) as file, tempfile.TemporaryFile() as plain:
        source: Any = path
        # compressed from outside; parquet is read from its end, so it needs a real file
        if path.suffix.lower() != ".parquet":
            shutil.copyfileobj(file, plain)
            plain.seek(0)
            source = plain

        number = 0
        try:
            table = pyarrow.parquet.ParquetFile(source)
            for batch in table.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row, None
        except (pyarrow.ArrowException, OSError) as error:
            cause = str(error).splitlines()[0]
            raise DataError(
                f"{path}: truncated or damaged parquet file after row {number}: {cause}"
            ) from error


def _read_txt(path: Path) -> Iterator[NumberedRow]:
    """Yield the documents of a text file.

    Separated by `<|endoftext|>` lines, else by blank lines, else one a line.

    Which of the three is decided from the first MiB, so that a novel keeps its paragraphs whole and
    a corpus of one document per line is not glued together.
    """
    with open_bytes(path) as start:
        head = start.read(1 << 20).decode(errors="replace").splitlines()

    with open_bytes(path) as lines:
        blank = sum(
            1 for above, line in itertools.pairwise(head) if above.strip() and not line.strip()
        )
        if any(line.strip() == _END_OF_TEXT for line in head):
            kind, ends = f"the text between lines {_END_OF_TEXT}", lambda line: line == _END_OF_TEXT
        elif blank * 64 > len(head):
            kind, ends = "a paragraph, blank lines between", lambda line: not line
        else:
            kind, ends = "a line", None

        logger.info("%s: one document is %s", path, kind)
        number, document = 1, []

        for current, line in enumerate(lines, 1):
            try:
                text = line.decode().rstrip()
            except UnicodeDecodeError as error:
                yield current, _bad_line(error, lines, line), line.decode(errors="backslashreplace")
                continue

            if ends is None or not ends(text):
                number = number if document else current
                document += [text] if text or document else []

            if document and (ends is None or ends(text)):
                yield number, {"text": "\n".join(document).rstrip()}, None
                document = []

        if document:
            yield number, {"text": "\n".join(document).rstrip()}, None
