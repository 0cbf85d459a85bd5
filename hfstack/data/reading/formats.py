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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow
import pyarrow.parquet

from hfstack.data.reading.files import DataFile, open_bytes
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


def read_file(file: DataFile) -> Iterator[NumberedRow]:
    """Yield every row of a file in constant memory.

    Raises DataError when the file as a whole cannot be read.
    """
    match file.format:
        case "jsonl":
            return _read_jsonl(file)
        case "json":
            return _read_json(file)
        case "csv":
            return _read_delimited(file, ",")
        case "tsv":
            return _read_delimited(file, "\t")
        case "parquet":
            return _read_parquet(file)
        case _:
            return _read_txt(file)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object; raise ValueError when a key occurs twice."""
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value; use null")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)


def _read_jsonl(file: DataFile) -> Iterator[NumberedRow]:
    decode_at = _DECODER.raw_decode
    seen = False

    with open_bytes(file) as lines:
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

                row = _decode_indented(text, error, lines, line)
                if not seen:
                    _refuse_other_format(file, number, line)

            # A line that is JSON may still be none that a row can be.
            seen = True
            if type(row) is not dict:
                if type(row) is not BadRow:
                    got = text and text.strip()[:40]
                    row = BadRow("not an object", f"expected an object {{...}}, got {got}")
            elif b"\\u" in line and (key := _lone_surrogate(row)):
                row = BadRow(
                    "broken character",
                    f"half of a surrogate pair in {key!r}, which no UTF-8 text can hold",
                )

            yield number, row, text if text is not None else line.decode(errors="backslashreplace")


def _decode_indented(
    text: str | None, error: Exception, lines: io.BufferedReader, line: bytes
) -> Any:
    """Decode a line with white space before its object, which `raw_decode` refuses.

    A BadRow when something else is wrong with it.
    """
    if text and text[0].isspace():
        try:
            return _DECODER.decode(text)
        except (ValueError, RecursionError) as again:
            return _bad_line(again, lines, line)
    return _bad_line(error, lines, line)


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
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError:
            return key
    return None


def _refuse_other_format(file: DataFile, number: int, line: bytes) -> None:
    """Raise DataError when the first line shows that a file is not JSON lines."""
    text = line.decode(errors="replace").strip()
    if text == "{" or (text.startswith("[") and not text.endswith("]")):
        hint = "" if text == "{" else "; if it is a JSON array, rename it to .json"
        raise DataError(
            f"{file} line {number}: this is one JSON document over several lines, expected one "
            f"object per line{hint}"
        )

    if text[:1] not in '{["' and re.search(r"[,;\t]", text):
        raise DataError(
            f"{file} line {number}: this looks like a table with a header ({text[:40]!r}); rename "
            "it to .csv or .tsv"
        )


def _read_json(file: DataFile) -> Iterator[NumberedRow]:
    with open_bytes(file) as stream:
        first = stream.peek(1).lstrip()[:1]
        if first == b"[":
            yield from _JsonArray(file, stream).rows()
            return
    yield from _read_jsonl(file)


class _JsonArray:
    """The objects of one JSON array, read without holding it.

    A syntax error ends the file, so it is a DataError.
    """

    def __init__(self, file: DataFile, stream: io.BufferedReader) -> None:
        self._file, self._stream = file, stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""  # decoded and not yet parsed, but for what lies before `_at`
        self._at = 0
        self._line = 1

    def rows(self) -> Iterator[NumberedRow]:
        self._take("[")
        if self._next_character() != "]":
            yield self._value()
            while self._take(",]") == ",":
                yield self._value()

        if self._text[self._at + 1 :].strip() or self._stream.read(1 << 10).strip():
            raise DataError(f"{self._file} line {self._line}: more text after the end of the array")

    def _value(self) -> NumberedRow:
        self._next_character()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # The rest of the value may be in the next chunk.
                near_end = error.pos >= len(self._text) - 16
                if (error.msg.startswith("Unterminated") or near_end) and self._read_more():
                    continue

                line = self._line + self._text.count("\n", self._at, error.pos)
                raise DataError(
                    f"{self._file} line {line}: {error.msg}; if the file is truncated, create it "
                    "again"
                ) from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self._file} line {self._line}: {error}") from error

            # A number that ends with the chunk may have more digits in the next one.
            if end == len(self._text) and self._read_more():
                continue

            line = self._line
            self._move(end)
            if isinstance(value, dict):
                return line, value, None
            return line, BadRow("not an object", "expected an object {...}"), None

    def _take(self, allowed: str) -> str:
        character = self._next_character()
        if character not in allowed:
            wanted = " or ".join(repr(each) for each in allowed)
            raise DataError(f"{self._file} line {self._line}: expected {wanted}, got {character!r}")
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
                    f"{self._file} line {self._line}: the array is never closed; the file is "
                    "truncated"
                )

    def _move(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _read_more(self) -> bool:
        """Append the next chunk.

        Chunks grow with what is pending, so that a large row is not scanned too often.
        """
        self._text, self._at = self._text[self._at :], 0
        chunk = self._stream.read(max(1 << 18, len(self._text)))
        try:
            self._text += self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            offset = self._stream.tell() - len(error.object) + error.start
            raise DataError(f"{self._file}: invalid UTF-8 at byte {offset} of the file") from error
        return bool(chunk)


def _read_delimited(file: DataFile, delimiter: str) -> Iterator[NumberedRow]:
    csv.field_size_limit(1 << 30)  # Python's own limit of 131072 refuses long documents
    with open_bytes(file) as lines:
        damaged: list[BadRow] = []
        reader = csv.reader(_decoded(lines, damaged), delimiter=delimiter, strict=True)

        try:
            header = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{file} line 1: malformed header: {error}") from error

        if header is None:
            return
        if damaged:
            raise DataError(f"{file} line 1: {damaged[0].detail}")
        _check_header(file, header, delimiter)

        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                detail = str(error)
                if "unexpected end" in detail:
                    detail = "a quoted cell begins here and never ends"
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


def _check_header(file: DataFile, header: list[str], delimiter: str) -> None:
    """Raise DataError when the first line is no header of this kind of table."""
    # Each of these would be read as a table with senseless columns.
    place = f"{file} line 1"
    first = delimiter.join(header).strip()
    if first[:1] in "{[":
        raise DataError(
            f"{place}: this looks like JSON, not a table ({first[:40]!r}); rename it to .jsonl or "
            ".json"
        )

    others = [mark for mark in ",;\t|" if mark != delimiter and mark in first]
    if len(header) == 1 and others:
        hints = {"\t": "rename it to .tsv", ",": "rename it to .csv"}
        hint = hints.get(others[0], "write it with commas")
        raise DataError(
            f"{place}: the columns are separated by {others[0]!r}, not by {delimiter!r}; {hint}"
        )

    if "" in header:
        hint = "; pandas writes such a column for its index: to_csv(index=False)"
        raise DataError(
            f"{place}: column {header.index('') + 1} of the header has no name"
            f"{hint if header[0] == '' else ''}"
        )

    double = [name for name in header if header.count(name) > 1]
    if double:
        raise DataError(f"{place}: the header names the column {double[0]!r} twice")

    numbers = [name for name in header if _NUMBER.fullmatch(name)]
    if numbers:
        raise DataError(
            f"{place}: no header: {numbers[0]!r} is a number, not the name of a column; add a "
            "line of names"
        )


def _read_parquet(file: DataFile) -> Iterator[NumberedRow]:
    with open_bytes(file) as stream, tempfile.TemporaryFile() as plain:
        source: Any = file.path

        # Parquet is read from its end, so a file that is compressed from outside is unpacked first.
        if file.compression:
            shutil.copyfileobj(stream, plain)
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
                f"{file}: truncated or damaged parquet file after row {number}: {cause}"
            ) from error


def _read_txt(file: DataFile) -> Iterator[NumberedRow]:
    """Yield the documents of a text file.

    Separated by `<|endoftext|>` lines, else by blank lines, else one a line.
    """
    ends_document, unit = _document_end(file)
    logger.info("%s: one document is %s", file, unit)

    with open_bytes(file) as lines:
        number, document = 1, []
        for current, line in enumerate(lines, 1):
            try:
                text = line.decode().rstrip()
            except UnicodeDecodeError as error:
                yield current, _bad_line(error, lines, line), line.decode(errors="backslashreplace")
                continue

            if ends_document is None or not ends_document(text):
                number = number if document else current
                document += [text] if text or document else []

            if document and (ends_document is None or ends_document(text)):
                yield number, {"text": "\n".join(document).rstrip()}, None
                document = []

        if document:
            yield number, {"text": "\n".join(document).rstrip()}, None


def _document_end(file: DataFile) -> tuple[Callable[[str], bool] | None, str]:
    """Return which lines of a text file separate documents, and what a document is.

    None where every line is a document. It is decided from the first MiB, so that a novel keeps its
    paragraphs whole and a corpus of one document per line is not glued together.
    """
    with open_bytes(file) as start:
        head = start.read(1 << 20).decode(errors="replace").splitlines()

    if any(line.strip() == _END_OF_TEXT for line in head):
        return lambda line: line == _END_OF_TEXT, f"the text between lines {_END_OF_TEXT}"

    blank = sum(
        above.strip() != "" and not line.strip() for above, line in itertools.pairwise(head)
    )
    if blank * 64 > len(head):
        return lambda line: not line, "a paragraph, blank lines between"
    return None, "a line"
