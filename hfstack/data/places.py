"""Refuse rows by file and line, also after they were split and shuffled."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hfstack.data.reading.formats import read_file
from hfstack.data.reading.layouts import standard_rows
from hfstack.data.sources import Source
from hfstack.errors import DataError

RowProblem = tuple[str, int, str]
"""The split, the number of the row in it from 1, and what is wrong."""

SHOWN_ROWS = 5


def refuse_rows(problems: Sequence[RowProblem], advice: str = "") -> None:
    """Raise RefusedRows where there are any problems."""
    if problems:
        raise RefusedRows(problems, advice)


@contextmanager
def rows_by_line(
    splits: Mapping[str, Any],
    texts: Sequence[str | None],
    others: Sequence[str],
    sources: Sequence[Source],
) -> Iterator[None]:
    """Name rows that are refused by their files and lines.

    Args:
        splits: rows of each, by number from 0.
        texts: columns that stand in the rows as in the files.
        others: columns that tell rows of equal texts apart. One may have been read as something
            else than what stands in the file: then the texts alone say which row it is.
        sources: of all splits.
    """
    try:
        yield
    except RefusedRows as error:
        shown = [splits[split][number - 1] for split, number, _ in error.problems[:SHOWN_ROWS]]
        columns = [column for column in texts if column is not None]
        exact = places_of(shown, [*columns, *others], sources)
        places = exact if all(exact) else places_of(shown, columns, sources)
        raise RefusedRows(error.problems, error.advice, places) from None


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


class RefusedRows(DataError):
    """Rows cannot be used: the first five are named, and all are counted.

    Args:
        problems: split, number and what is wrong, of each row.
        advice: what to do with such rows.
        places: of the first rows, their files and lines where these are known.
    """

    def __init__(
        self, problems: Sequence[RowProblem], advice: str = "", places: Sequence[str | None] = ()
    ) -> None:
        self.problems, self.advice = problems, advice
        named = [*places, *[None] * SHOWN_ROWS]
        shown = "; ".join(
            f"{place or f'{split} row {number}'}: {detail}"
            for (split, number, detail), place in zip(problems[:SHOWN_ROWS], named, strict=False)
        )
        count = f"{len(problems)} rows cannot be used, first: " if len(problems) > 1 else ""
        more = "; ..." if len(problems) > SHOWN_ROWS else ""
        super().__init__(f"{count}{shown}{more}{f'; {advice}' if advice else ''}")
