"""Read local files as rows that are checked against each other.

All have the same keys and the same types, and none is dropped silently.

The first rows of a source say which keys and which types its rows have (what most of them have). A
row that differs, or that cannot be read at all, is a bad row: it stops the run, or is skipped or
quarantined, and is counted by reason.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TextIO

from hfstack.data.reading.bad_rows import BadRow, NumberedRow
from hfstack.data.reading.files import DataFile
from hfstack.data.reading.formats import read_file
from hfstack.data.reading.layouts import Purpose, standard_rows
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger

logger = get_logger(__name__)

OnBadRow = Literal["fail", "skip", "quarantine"]
FIRST_ROWS = 100  # rows that decide the keys and the types of a source
# key orders, and paths inside objects: data must not be able to fill the memory
_MOST_REMEMBERED = 10_000

_VALUE_KINDS = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true/false",
    list: "list",
    dict: "object",
}
_NUMBER_KINDS = {"integer", "number"}
# Only the spelling that Python itself would write is a number: "007", "+5" and "1e3" stay text.
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")
_DECIMAL = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]\d+)?")


@dataclass
class ReadReport:
    """What a read found: good rows, bad rows by reason, nulls by column, and where.

    `notes` counts the files of which each sentence is true.
    """

    rows: int = 0
    bad_rows: dict[str, int] = field(default_factory=dict)
    first_bad: dict[str, str] = field(default_factory=dict)
    bad_files: dict[str, int] = field(default_factory=dict)
    nulls: dict[str, int] = field(default_factory=dict)
    first_null: dict[str, str] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Count a file of which something is worth saying."""
        self.notes[text] = self.notes.get(text, 0) + 1

    def log(self, name: str) -> None:
        """Log one line per note, per reason and per column with nulls, whatever the files."""
        for text, count in self.notes.items():
            logger.info("%s: %s%s", name, text, f" ({count} files)" if count > 1 else "")

        total = self.rows + sum(self.bad_rows.values())
        for reason, count in self.bad_rows.items():
            logger.warning(
                "%s: left out %d of %d rows: %s; first: %s",
                name,
                count,
                total,
                reason,
                self.first_bad[reason],
            )

        for what, count in self.bad_files.items():
            others = f" and {count - 1} more" if count > 1 else ""
            logger.warning("%s%s: %s", self.first_bad[what], others, what)

        for column, count in self.nulls.items():
            logger.warning(
                "%s: column %r is null in %d of %d rows; first: %s",
                name,
                column,
                count,
                self.rows,
                self.first_null[column],
            )


def read_rows(
    files: list[DataFile],
    *,
    on_bad_row: OnBadRow = "fail",
    quarantine_file: Path | None = None,
    max_rows: int | None = None,
    purpose: Purpose = "rows",
    report: ReadReport | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the checked rows of the files of one source, in constant memory.

    Args:
        files: the files of one source; all have the same columns.
        on_bad_row: `fail` raises DataError at the first bad row; `skip` leaves bad rows out;
            `quarantine` also writes them to `quarantine_file`, one JSON object {file, line, reason,
            detail, text} per line, after what it holds.
        max_rows: stop after this many good rows.
        purpose: what the rows are for, as in `standard_rows`.
        report: filled while reading, and logged at the end.

    Raises DataError when there is no good row.
    """
    report = report if report is not None else ReadReport()
    name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"

    with ExitStack() as stack:
        reject = _rejecter(on_bad_row, quarantine_file, report, stack, files[0])
        checker = _Checker(report)

        for file in files:
            empty = True
            for line, row, text in _with_first_rows(file, purpose, checker):
                empty = False
                if not isinstance(row, dict):
                    reject(file, line, row, None, text)
                    continue

                # The keys and types of a flat row that was accepted before need no second look.
                shape = (*row, *map(type, row.values()))
                if shape not in checker.accepted or _has_odd_number(row, shape):
                    bad = checker.examine(row, shape, file, line)
                    if bad:
                        reject(file, line, bad, row, text)
                        continue

                report.rows += 1
                yield row

                if report.rows == max_rows:
                    report.log(name)
                    return

            if empty:
                _report_empty(file, on_bad_row, report)

    if not report.rows:
        bad_rows = sum(report.bad_rows.values())
        if not bad_rows:
            raise DataError(f"{name}: no rows")
        first = next(iter(report.first_bad.values()))
        raise DataError(f"{name}: all {bad_rows} rows are bad; first: {first}")

    report.log(name)


def _report_empty(file: DataFile, on_bad_row: OnBadRow, report: ReadReport) -> None:
    """Refuse a file without rows, or count it where bad rows are left out."""
    what = "the file has no rows"
    if file.is_table and file.path.stat().st_size:
        what = "the file has a header but no rows"

    if on_bad_row == "fail":
        raise DataError(f"{file}: {what}; remove it or create it again")
    report.bad_files[what] = report.bad_files.get(what, 0) + 1
    report.first_bad.setdefault(what, str(file))


Rejecter = Callable[[DataFile, int, BadRow, dict[str, Any] | None, str | None], None]


def _rejecter(
    on_bad_row: OnBadRow,
    quarantine_file: Path | None,
    report: ReadReport,
    stack: ExitStack,
    first_file: DataFile,
) -> Rejecter:
    """Return what is done with a bad row.

    The quarantine file is created at the first one, and closed with `stack`.
    """
    if on_bad_row not in ("fail", "skip", "quarantine"):
        raise ConfigError(f"on_bad_row must be fail, skip or quarantine, got {on_bad_row!r}")

    if on_bad_row == "quarantine" and quarantine_file is None:
        raise ConfigError(
            "on_bad_row is quarantine but no quarantine_file is given to write bad rows to"
        )

    out: TextIO | None = None

    def reject(
        file: DataFile, line: int, bad: BadRow, row: dict[str, Any] | None, text: str | None
    ) -> None:
        nonlocal out
        unit = "row" if file.format == "parquet" else "line"
        place = f"{file} {unit} {line}"

        if on_bad_row == "fail":
            hint = "fix it, or leave it out with --on_bad_row skip"
            if file != first_file:
                hint += "; files with other columns are given as datasets of their own"
            raise DataError(f"{place}: {bad.detail}; {hint}")

        report.bad_rows[bad.reason] = report.bad_rows.get(bad.reason, 0) + 1
        report.first_bad.setdefault(bad.reason, f"{place}: {bad.detail}")

        if quarantine_file is None or on_bad_row == "skip":
            return

        if out is None:
            quarantine_file.parent.mkdir(parents=True, exist_ok=True)
            out = stack.enter_context(
                quarantine_file.open("a", encoding="utf-8", errors="backslashreplace")
            )

        # A row of a format that has no lines is kept as JSON.
        if text is None:
            text = json.dumps(row, ensure_ascii=False, default=str)

        entry = {
            "file": str(file),
            "line": line,
            "reason": bad.reason,
            "detail": bad.detail,
            "text": text.rstrip("\r\n"),
        }
        out.write(json.dumps(entry, ensure_ascii=False) + "\n")

    return reject


def _with_first_rows(
    file: DataFile, purpose: Purpose, checker: "_Checker"
) -> Iterator[NumberedRow]:
    """Read a file; find the columns of its source from the first rows, if unknown."""
    numbered = standard_rows(read_file(file, checker.report.note), purpose, checker.report.note)
    if not checker.keys:
        first = list(islice(numbered, FIRST_ROWS))
        checker.find_columns(file, [(line, row) for line, row, _ in first if type(row) is dict])
        numbered = chain(first, numbered)

    return checker.with_numbers(numbered) if file.is_table else numbered


class _Checker:
    """Knows the keys and types of a source, and finds the row that differs from them."""

    def __init__(self, report: ReadReport) -> None:
        self.keys: tuple[str, ...] = ()
        self.accepted: set[tuple[Any, ...]] = set()  # shapes of flat rows without nulls
        self.report = report
        self._key_place = ""
        # column, or path inside one -> kind, first place
        self._kinds: dict[str, tuple[str, str]] = {}
        self._number_columns: dict[str, type] = {}

    def find_columns(self, file: DataFile, rows: list[tuple[int, dict[str, Any]]]) -> None:
        """Find the keys, and the kind of value of each column, that most first rows have."""
        if not rows:
            return
        common = Counter(frozenset(row) for _, row in rows).most_common(1)[0][0]
        rows = [(line, row) for line, row in rows if row.keys() == common]
        line, row = rows[0]
        self.keys, self._key_place = tuple(row), f"{file.path.name} line {line}"

        for column in self.keys:
            # The cells of a table are all text: whether they spell numbers is what matters.
            if file.is_table:
                if number := _number_type([row[column] for _, row in rows]):
                    self._number_columns[column] = number
                continue

            kinds = [(_kind(row[column]), line) for line, row in rows if row[column] is not None]
            if kinds:
                kind, line = _commonest(kinds)
                self._kinds[column] = kind, f"{file.path.name} line {line}"

    def with_numbers(self, numbered: Iterator[NumberedRow]) -> Iterator[NumberedRow]:
        """Turn the cells of number columns into numbers, an empty one into null.

        Every other cell stays text.
        """
        columns = self._number_columns
        for line, row, text in numbered:
            result: dict[str, Any] | BadRow = row
            if columns and type(row) is dict:
                for column, number in columns.items():
                    cell = row.get(column, "")
                    if cell == "":
                        row[column] = None
                    elif _INTEGER.fullmatch(cell):
                        row[column] = number(cell)
                    elif number is float and _DECIMAL.fullmatch(cell):
                        row[column] = float(cell)
                    else:
                        kind = "an integer" if number is int else "a number"
                        detail = (
                            f"column {column!r} is {kind} in the first rows ({self._key_place}), "
                            f"here {cell[:40]!r}"
                        )
                        result = BadRow("mixed types", detail)

            yield line, result, text

    def examine(
        self, row: dict[str, Any], shape: tuple[Any, ...], file: DataFile, line: int
    ) -> BadRow | None:
        """Return what is wrong with a row of a new shape, with nulls, lists or objects."""
        if key := _odd_key(row):
            return BadRow("broken character", f"a column is called {key}")
        if row.keys() != set(self.keys):
            return self._wrong_keys(row)
        place = f"{file.path.name} line {line}"
        found: dict[str, tuple[str, str]] = {}

        for column, value in row.items():
            if value is not None and (bad := self._wrong_value(column, value, place, found)):
                return bad

        if len(self._kinds) < _MOST_REMEMBERED:
            self._kinds.update(found)

        nulls = [column for column, value in row.items() if value is None]
        for column in nulls:
            self.report.nulls[column] = self.report.nulls.get(column, 0) + 1
            self.report.first_null.setdefault(column, f"{file} line {line}")

        # Lists and objects of the same type may differ inside, so only flat rows are remembered.
        is_flat = not nulls and not {list, dict} & set(shape[len(row) :])
        if is_flat and len(self.accepted) < _MOST_REMEMBERED:
            self.accepted.add(shape)

        return None

    def _wrong_keys(self, row: dict[str, Any]) -> BadRow:
        missing = [key for key in self.keys if key not in row]
        extra = [key for key in row if key not in self.keys]
        missing_names = ", ".join(repr(key) for key in missing[:5])
        extra_names = ", ".join(repr(key) for key in extra[:5])

        if missing and extra:
            return BadRow(
                "other keys", f"key {extra_names} where {self._key_place} has {missing_names}"
            )

        if missing:
            return BadRow(
                "missing key",
                f"no key {missing_names}, which {self._key_place} has; write null for no value",
            )

        return BadRow("extra key", f"key {extra_names}, which {self._key_place} has not")

    def _wrong_value(
        self, path: str, value: Any, place: str, found: dict[str, tuple[str, str]]
    ) -> BadRow | None:
        """Compare the kind of a value, and of all inside it, with that of earlier rows."""
        kind = _kind(value)
        if kind in _NUMBER_KINDS and _is_odd(value):
            return BadRow(
                "number too large",
                f"column {path!r} holds {_shorten(value)}, which 64 bits cannot hold",
            )
        if kind == "object" and (key := _odd_key(value)):
            return BadRow("broken character", f"{path!r} has a key {key}")

        before, first = found.get(path) or self._kinds.get(path) or (kind, place)
        if kind != before:
            if not {kind, before} <= _NUMBER_KINDS:
                detail = (
                    f"column {path!r} holds {kind} {str(value)[:20]!r} here but {before} in {first}"
                )
                return BadRow("mixed types", detail)
            kind = "number"

        found[path] = kind, first
        if kind == "object":
            inside = ((f"{path}.{key}", item) for key, item in value.items())
        elif kind == "list":
            inside = ((f"{path}[]", item) for item in _one_per_type(value))
        else:
            return None

        for name, item in inside:
            if item is not None and (bad := self._wrong_value(name, item, place, found)):
                return bad

        return None


def _commonest(kinds: list[tuple[str, int]]) -> tuple[str, int]:
    """Return the kind that most rows have, and its first line.

    Integers count as numbers.
    """
    counts = Counter("number" if kind in _NUMBER_KINDS else kind for kind, _ in kinds)
    most = counts.most_common(1)[0][0]
    same = _NUMBER_KINDS if most == "number" else {most}
    return next((kind, line) for kind, line in kinds if kind in same)


def _one_per_type(values: list[Any]) -> list[Any]:
    """Return all items, or one of each type when all are scalars.

    A list of 10000 tokens is thus checked at once. A number that is none of 64 bits is among them.
    """
    types = {type(value): value for value in values}
    for kind in {int, float} & types.keys():
        types[kind] = next(filter(_is_odd, values), types[kind])
    return values if list in types or dict in types else list(types.values())


def _kind(value: Any) -> str:
    return _VALUE_KINDS.get(type(value), type(value).__name__)


def _has_odd_number(row: dict[str, Any], shape: tuple[Any, ...]) -> bool:
    """Return whether a flat row has a number that no column can hold."""
    return (int in shape or float in shape) and any(map(_is_odd, row.values()))


def _is_odd(value: Any) -> bool:
    """Return whether a value is a number that 64 bits cannot hold: 1e999, 10^30."""
    if type(value) is float:
        return not math.isfinite(value)
    return type(value) is int and not -(1 << 63) <= value < 1 << 63


def _shorten(number: float) -> str:
    text = str(number)
    return text if len(text) <= 24 else f"{text[:20]}... of {len(text)} digits"


def _odd_key(row: dict[str, Any]) -> str | None:
    """Return how a key of a row looks that cannot be the name of a column, or None."""
    for key in row:
        if "\0" in key or (not key.isascii() and key.encode(errors="replace").decode() != key):
            return ascii(key[:40])
    return None


def _number_type(cells: list[str]) -> type | None:
    """Return int or float when all non-empty cells are such numbers, else None."""
    filled = [cell for cell in cells if cell]
    if filled and all(map(_INTEGER.fullmatch, filled)):
        return int
    return float if filled and all(map(_DECIMAL.fullmatch, filled)) else None


def empty_quarantine(quarantine_file: Path | None) -> Path | None:
    """Return the file for bad rows, emptied of those of an earlier run.

    The sources of one run append to the file in turn. On other ranks than 0 it is a sink.
    """
    if quarantine_file is None:
        return None
    if os.environ.get("RANK", "0") != "0":
        return Path(os.devnull)
    quarantine_file.unlink(missing_ok=True)
    return quarantine_file
