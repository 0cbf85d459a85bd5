"""Read a table of cells below a header: comma-separated, or separated by tabs."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator

from hfstack.data.reading.bad_rows import BadRow, Note, NumberedRow, bad_line, too_large
from hfstack.data.reading.files import DataFile
from hfstack.data.reading.opening import open_bytes, read_lines
from hfstack.errors import DataError

_NUMERIC_CELL = re.compile(r"[-+]?(\d++\.?\d*|\.\d+)([eE][-+]?\d+)?")


def read_csv(file: DataFile) -> Iterator[NumberedRow]:
    """Yield the rows of a csv file, whose cells may be quoted (RFC 4180)."""
    csv.field_size_limit(file.max_row_bytes)  # Python's own of 131072 refuses long documents
    with open_bytes(file) as lines:
        damaged: list[BadRow] = []
        reader = csv.reader(_decoded(file, lines, damaged), strict=True)

        try:
            header = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{file} line 1: malformed header: {error}") from error

        if header is None:
            return
        if damaged:
            raise DataError(f"{file} line 1: {damaged[0].detail}")
        _check_header(file, header, ",")

        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                detail = str(error)
                if "field larger" in detail:
                    yield number, too_large(file.max_row_bytes), None
                    continue
                if "unexpected end" in detail:
                    detail = "a quoted cell begins here and never ends"
                yield number, BadRow("malformed csv", detail), None
                continue

            if cells is None:
                return

            if damaged:
                yield number, damaged[0], ",".join(cells)
                damaged.clear()
            elif cells:
                yield _row_of_cells(number, header, cells, ",")


def read_tsv(file: DataFile, note: Note) -> Iterator[NumberedRow]:
    """Yield the rows of a tsv file: every line is a row, and a quote is a character.

    So the tables of GLUE, PAWS-X and most of language processing are written (the type
    text/tab-separated-values of the IANA has no quoting either).
    """
    with open_bytes(file) as lines:
        first = next(read_lines(file, lines), b"")
        if not first.strip():
            return

        try:
            header = first.decode().rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            raise DataError(f"{file} line 1: {bad_line(error, lines, first).detail}") from error
        _check_header(file, header, "\t")

        quoted = False
        for number, line in enumerate(read_lines(file, lines), 2):
            if len(line) > file.max_row_bytes:
                yield number, too_large(file.max_row_bytes), None
                continue
            try:
                text = line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield number, bad_line(error, lines, line), line.decode(errors="backslashreplace")
                continue

            if '""' in text and not quoted and any(map(_is_quoted, text.split("\t"))):
                quoted = True
                note(
                    f"line {number} has a cell quoted as in csv files; in a tsv file a quote is a "
                    "character of the text: write the table with commas (.csv) to have it unquoted"
                )

            if text:
                yield _row_of_cells(number, header, text.split("\t"), "\t")


def _row_of_cells(number: int, header: list[str], cells: list[str], delimiter: str) -> NumberedRow:
    if cells[-1:] == header[-1:] and [cells[0].lstrip("\ufeff"), *cells[1:]] == header:
        detail = "the header again, as where tables were joined"
        return number, BadRow("repeated header", detail), delimiter.join(cells)
    if len(cells) == len(header):
        return number, dict(zip(header, cells, strict=True)), None
    detail = f"{len(cells)} cells where the header has {len(header)}"
    return number, BadRow("ragged row", detail), delimiter.join(cells)


def _decoded(file: DataFile, lines: io.BufferedReader, damaged: list[BadRow]) -> Iterator[str]:
    """Decode lines; mark the ones that are not UTF-8, or too long, in `damaged`.

    They are passed on with replacement characters, or as nothing.
    """
    for line in read_lines(file, lines):
        if len(line) > file.max_row_bytes:
            damaged.append(too_large(file.max_row_bytes))
            yield "\n"
            continue
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            damaged.append(bad_line(error, lines, line))
            yield line.decode(errors="backslashreplace")


def _is_quoted(cell: str) -> bool:
    """Return whether a cell is quoted as a csv writer does it.

    No one writes doubled quotes by hand.
    """
    return len(cell) > 3 and cell[0] == cell[-1] == '"' and '""' in cell[1:-1]


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

    if delimiter == "\t" and (quoted := [name for name in header if re.fullmatch('".+"', name)]):
        raise DataError(
            f"{place}: the header names the column {quoted[0]} with quotes, which are characters "
            "in a tsv file; write the table with commas (.csv), or without quotes"
        )

    # A damaged file may have a hundred thousand columns.
    counts = Counter(header)
    double = next((name for name in header if counts[name] > 1), None)
    if double is not None:
        raise DataError(f"{place}: the header names the column {double[:40]!r} twice")

    numbers = [name for name in header if _NUMERIC_CELL.fullmatch(name)]
    if numbers:
        raise DataError(
            f"{place}: no header: {numbers[0]!r} is a number, not the name of a column; add a "
            "line of names"
        )
