"""Find the file and the line of rows that were split and shuffled."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hfstack.data.reading.formats import read_file
from hfstack.data.reading.layouts import standard_rows
from hfstack.data.sources import Source


def places_of(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], sources: Sequence[Source]
) -> list[str | None]:
    """Return the place of each row as `a.csv line 7`, or None if it is in no file.

    The files are read again, so that no row carries its place while all is well. Rows are known by
    what stands in `columns`, and equal ones are taken in their order.
    """
    places: list[str | None] = [None] * len(rows)
    wanted: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        wanted.setdefault(_spelled(row, columns), []).append(index)

    for source in sources:
        for file in source.find_files():
            unit = "row" if file.is_binary else "line"
            for line, row, _ in standard_rows(read_file(file), "rows", lambda text: None):
                if not wanted:
                    return places
                if not isinstance(row, dict):
                    continue

                key = _spelled(row, columns)
                if key in wanted:
                    places[wanted[key].pop(0)] = f"{file} {unit} {line}"
                    if not wanted[key]:
                        del wanted[key]
    return places


def _spelled(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    """Return the values of a row in one spelling, whatever they were read as."""
    return tuple(_as_text(row.get(column)) for column in columns)


def _as_text(value: Any) -> str:
    if isinstance(value, int | float | str):
        try:
            return repr(float(value))
        except ValueError:
            return str(value).strip()
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
