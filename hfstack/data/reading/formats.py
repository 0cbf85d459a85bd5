"""Read one local file of any known format as numbered rows.

A row that cannot be read comes out as a BadRow.
"""

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from hfstack.data.reading.arrow import read_arrow
from hfstack.data.reading.bad_rows import (
    MOST_LEVELS,
    BadRow,
    Note,
    NumberedRow,
    UnfitNumber,
    UnfitText,
    bad_line,
    nests_too_deeply,
    too_large,
)
from hfstack.data.reading.conll import read_conll
from hfstack.data.reading.files import DataFile
from hfstack.data.reading.opening import open_bytes, read_lines
from hfstack.data.reading.parallel import read_parallel
from hfstack.data.reading.parquet import read_parquet
from hfstack.data.reading.plain_text import read_txt
from hfstack.data.reading.tables import read_csv, read_tsv
from hfstack.errors import DataError
from hfstack.json_forms import unique_keys

_SPACE = re.compile(r"\s*")


def read_file(file: DataFile, note: Note = lambda text: None) -> Iterator[NumberedRow]:
    """Yield every row of a file in constant memory.

    `note` is called with what is worth saying of the file. Raises DataError when the file as a
    whole cannot be read.
    """
    match file.format:
        case "jsonl":
            return _read_jsonl(file)
        case "json":
            return _read_json_rows(file)
        case "csv":
            return read_csv(file)
        case "tsv":
            return read_tsv(file, note)
        case "parquet":
            return read_parquet(file)
        case "arrow":
            return read_arrow(file)
        case "parallel":
            return read_parallel(file, note)
        case "conll" | "conllu":
            return read_conll(file, note)
        case _:
            return read_txt(file, note)


# whether such a number stops the run depends on its column
_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=UnfitNumber)


def _read_jsonl(file: DataFile) -> Iterator[NumberedRow]:
    decode_at = _DECODER.raw_decode
    seen = False

    with open_bytes(file) as lines:
        for number, line in enumerate(read_lines(file, lines), 1):
            text = None
            if len(line) > file.max_row_bytes:
                yield number, too_large(file.max_row_bytes), None
                continue
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
            elif line.count(b"[") + line.count(b"{") > MOST_LEVELS:
                row = nests_too_deeply(row) or row
            if b"\\u" in line and type(row) is dict:
                row = _mark_broken_characters(row)

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
            return bad_line(again, lines, line)
    return bad_line(error, lines, line)


def _mark_broken_characters(row: dict[str, Any]) -> dict[str, Any] | BadRow:
    """Replace values that hold half of a surrogate pair by what names their column.

    JSON can spell it, UTF-8 and Arrow cannot. A key that holds one makes the row a bad one.
    """
    for key, value in row.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        try:
            f"{key}{text}".encode()
        except UnicodeEncodeError:
            if not _is_utf_8(key):
                return BadRow(
                    "broken character",
                    f"half of a surrogate pair in {key!a}, which no UTF-8 text can hold",
                )
            row[key] = UnfitText(key)
    return row


def _is_utf_8(text: str) -> bool:
    return text.encode(errors="replace").decode() == text


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


def _read_json_rows(file: DataFile) -> Iterator[NumberedRow]:
    with open_bytes(file) as stream:
        first = stream.peek(1).lstrip()[:1]
        array = _JsonArray(file, stream)
        if first == b"[" or (first == b"{" and array.find_data()):
            yield from array.rows()
            return
    yield from _read_jsonl(file)


class _JsonArray:
    """The objects of one JSON array, read without holding it.

    The array is the whole document, or the value of its key `data`. A syntax error ends the file,
    so it is a DataError.
    """

    def __init__(self, file: DataFile, stream: io.BufferedReader) -> None:
        self._file, self._stream = file, stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""  # decoded and not yet parsed, but for what lies before `_at`
        self._at = 0
        self._line = 1
        self._in_object = False
        self._has_escapes = False  # of characters by number, in the value decoded last

    def find_data(self) -> bool:
        """Move to the objects below the key `data` of a document, if it is such a one."""
        try:
            self._take("{")
            while True:
                key = self._decoded()
                self._take(":")
                if key == "data" and self._next_character() == "[":
                    self._take("[")
                    self._in_object = self._next_character() == "{"
                    return self._in_object
                self._decoded()
                if self._take(",}") == "}":
                    return False
        except DataError:  # the reader of lines names what is wrong
            return False

    def rows(self) -> Iterator[NumberedRow]:
        if not self._in_object:
            self._take("[")
        if self._next_character() != "]":
            yield self._value()
            while self._take(",]") == ",":
                yield self._value()

        # what the document says beside its data, such as a version
        while self._in_object and self._take(",}") == ",":
            self._decoded()
            self._take(":")
            self._decoded()

        rest = self._text[self._at :] if self._in_object else self._text[self._at + 1 :]
        if rest.strip() or self._stream.read(1 << 10).strip():
            raise DataError(f"{self._file} line {self._line}: more text after the end of the array")

    def _value(self) -> NumberedRow:
        self._next_character()
        line = self._line
        value = self._decoded()
        if isinstance(value, dict):
            bad = nests_too_deeply(value)
            if bad is None and self._has_escapes:
                return line, _mark_broken_characters(value), None
            return line, bad or value, None
        return line, BadRow("not an object", "expected an object {...}"), None

    def _decoded(self) -> Any:
        """Return the JSON value that comes next."""
        self._next_character()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # The rest of the value may be in the next chunk.
                near_end = error.pos >= len(self._text) - 16
                if len(self._text) - self._at > self._file.max_row_bytes:
                    bad = too_large(self._file.max_row_bytes)
                    raise DataError(f"{self._file} line {self._line}: {bad.detail}") from None
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

            self._has_escapes = self._text.find("\\u", self._at, end) >= 0
            self._move(end)
            return value

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
