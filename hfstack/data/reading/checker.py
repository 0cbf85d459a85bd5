"""Check that rows have the same keys, and the same types in each column."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from hfstack.data.reading.bad_rows import UNFIT, BadRow, NumberedRow, unfit_value
from hfstack.data.reading.files import DataFile
from hfstack.data.reading.read_report import ReadReport

# key orders, and paths inside objects: data must not be able to fill the memory
_MOST_SHAPES = 10_000

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


def has_odd_number(row: dict[str, Any], shape: tuple[Any, ...]) -> bool:
    """Return whether a flat row has a number that no column can hold."""
    return (int in shape or float in shape) and any(map(_is_odd, row.values()))


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


def _kind_of_value(value: Any) -> str:
    return _VALUE_KINDS.get(type(value), type(value).__name__)


def _is_odd(value: Any) -> bool:
    """Return whether a value is a number that 64 bits cannot hold: 1e999, 10^30."""
    if type(value) is float:
        return not math.isfinite(value)
    return type(value) is int and not -(1 << 63) <= value < 1 << 63


def _shorten_number(number: float) -> str:
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


class RowChecker:
    """Knows the keys and types of a source, and finds the row that differs from them."""

    def __init__(
        self,
        report: ReadReport,
        columns: Collection[str] | None = None,
        numbers: Collection[str] | None = None,
    ) -> None:
        self.keys: tuple[str, ...] = ()
        self._read, self._numbers = columns, numbers
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
                number = _number_type([row[column] for _, row in rows])
                if number and self._may_be_numbers(column):
                    self._number_columns[column] = number
                continue

            kinds = [
                (_kind_of_value(row[column]), line)
                for line, row in rows
                if row[column] is not None and type(row[column]) not in UNFIT
            ]
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
                    elif self._is_read(column):
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
        place = f"{file.path.name} line {line}"
        found: dict[str, tuple[str, str]] = {}
        unread: dict[str, str] = {}

        if row.keys() != set(self.keys):
            missing, extra = self._other_keys(row)
            if any(map(self._is_read, (*missing, *extra))):
                return self._wrong_keys(missing, extra)
            unread |= dict.fromkeys(missing, f"{place} does not have it")
            unread |= dict.fromkeys(extra, f"{place} has it, {self._key_place} does not")

        for column, value in row.items():
            if value is None:
                continue
            if column in self.report.left_out:
                row[column] = None if type(value) in UNFIT else value
            elif bad := self._wrong_value(column, value, place, found):
                if self._is_read(column):
                    return bad
                row[column] = None if type(value) in UNFIT else value
                unread[column] = f"{place}: {bad.detail}"

        for column, why in unread.items():
            self.report.leave_out(column, why)
        if len(self._kinds) < _MOST_SHAPES:
            self._kinds.update(found)

        nulls = [column for column, value in row.items() if value is None]
        for column in nulls:
            self.report.nulls[column] = self.report.nulls.get(column, 0) + 1
            self.report.first_null.setdefault(column, f"{file} line {line}")

        # Lists and objects of the same type may differ inside, so only flat rows are remembered.
        is_flat = not nulls and not {list, dict, *UNFIT} & set(shape[len(row) :])
        if is_flat and len(self.accepted) < _MOST_SHAPES:
            self.accepted.add(shape)

        return None

    def _is_read(self, column: str) -> bool:
        return self._read is None or column in self._read

    def _may_be_numbers(self, column: str) -> bool:
        """Return whether digits in a column of a table are a number, and not text."""
        if self._numbers is None:
            return self._read is None or column not in self._read
        return column in self._numbers

    def _other_keys(self, row: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Return the keys that a row lacks, and those that the first rows lack."""
        missing = [key for key in self.keys if key not in row]
        return missing, [key for key in row if key not in self.keys]

    def _wrong_keys(self, missing: list[str], extra: list[str]) -> BadRow:
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
        if type(value) in UNFIT:
            return unfit_value(value)
        kind = _kind_of_value(value)
        if kind in _NUMBER_KINDS and _is_odd(value):
            return BadRow(
                "number too large",
                f"column {path!r} holds {_shorten_number(value)}, which 64 bits cannot hold",
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
