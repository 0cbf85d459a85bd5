"""Refuse rows by file and line, also after they were split and shuffled."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hfstack.data.reading.formats import read_file
from hfstack.data.reading.layouts import Purpose, standard_rows
from hfstack.data.reading.rows import OnBadRow
from hfstack.data.sources import Source
from hfstack.errors import DataError
from hfstack.json_forms import without_nulls
from hfstack.logs import get_logger
from hfstack.row_counts import RowCounts

logger = get_logger(__name__)

RowProblem = tuple[str, int, str]
"""The split, the number of the row in it from 1, and what is wrong."""

FindPlaces = Callable[[Sequence[tuple[str, int]]], list[str | None]]
"""From splits with the numbers of rows in them, from 1, to their places in files."""

SHOWN_ROWS = 5


def refuse_rows(problems: Sequence[RowProblem], advice: str = "") -> None:
    """Raise RefusedRows where there are any problems."""
    if problems:
        raise RefusedRows(problems, advice)


@dataclass(frozen=True)
class BadRows:
    """What becomes of rows that read well and cannot be used: refused, or left out.

    Args:
        on_bad_row: `fail` refuses them, `skip` leaves them out, `quarantine` writes them down too.
        quarantine_file: where to; lines are added to what was written when the files were read.
        row_counts: counts what is left out.
    """

    on_bad_row: OnBadRow = "fail"
    quarantine_file: Path | None = None
    row_counts: RowCounts | None = None

    def settle(self, split: str, rows: Any, problems: Sequence[RowProblem]) -> None:
        """Refuse the rows of a split that have a problem, or count and log them.

        Args:
            rows: of the split, by number from 0.

        Raises:
            RefusedRows: `on_bad_row` is `fail`.
        """
        if not problems:
            return
        if self.on_bad_row == "fail":
            which = "it" if len(problems) == 1 else "them"
            refuse_rows(problems, f"fix {which}, or leave {which} out with --on_bad_row skip")
        logger.warning(
            "%s: left out %d of %d rows that cannot be used, the first because %s",
            split,
            len(problems),
            len(rows),
            problems[0][2],
        )
        if self.row_counts is not None:
            self.row_counts.leave_out(split, "that cannot be used", len(problems))
        # every process reads the rows, and one writes
        first = os.environ.get("RANK", "0") == "0"
        if self.on_bad_row == "quarantine" and self.quarantine_file is not None and first:
            self._write_down(self.quarantine_file, rows, problems)

    def _write_down(self, path: Path, rows: Any, problems: Sequence[RowProblem]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as out:
            for split, number, detail in problems:
                text = json.dumps(dict(rows[number - 1]), ensure_ascii=False, default=str)
                entry = {"split": split, "row": number, "detail": detail, "text": text}
                out.write(json.dumps(entry, ensure_ascii=False) + "\n")


REFUSED = BadRows()


@contextmanager
def rows_by_line(
    splits: Mapping[str, Any],
    texts: Sequence[str | None],
    others: Sequence[str],
    sources: Sequence[Source],
    purpose: Purpose = "rows",
) -> Iterator[None]:
    """Name rows that are refused by their files and lines.

    Arguments are those of `place_finder`.
    """
    try:
        yield
    except RefusedRows as error:
        find_places = place_finder(splits, texts, others, sources, purpose)
        shown = [(split, number) for split, number, _ in error.problems[:SHOWN_ROWS]]
        raise RefusedRows(error.problems, error.advice, find_places(shown)) from None


def place_finder(
    splits: Mapping[str, Any],
    texts: Sequence[str | None],
    others: Sequence[str],
    sources: Sequence[Source],
    purpose: Purpose = "rows",
) -> FindPlaces:
    """Return what finds the files and lines of rows.

    Args:
        splits: rows of each, by number from 0.
        texts: columns that stand in the rows as in the files.
        others: columns that tell rows of equal texts apart. One may have been read as something
            else than what stands in the file: then the texts alone say which row it is.
        sources: of all splits.
        purpose: what the rows were read for, which decides the layouts that are converted.
    """
    columns = [column for column in texts if column is not None]

    def find_places(numbered: Sequence[tuple[str, int]]) -> list[str | None]:
        once = list(dict.fromkeys(numbered))  # a row may have several faults
        rows = [splits[split][number - 1] for split, number in once]
        found = places_of(rows, [*columns, *others], sources, purpose)
        if not all(found):
            found = places_of(rows, columns, sources, purpose)
        place_of = dict(zip(once, found, strict=True))
        return [place_of[each] for each in numbered]

    return find_places


def places_of(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    sources: Sequence[Source],
    purpose: Purpose = "rows",
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
            for line, row, _ in standard_rows(read_file(file), purpose, lambda text: None):
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
    if value is None:
        return ""
    return json.dumps(without_nulls(value), ensure_ascii=False, default=str, sort_keys=True)


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
        self.problems, self.advice, self.places = problems, advice, places
        named = [*places, *[None] * SHOWN_ROWS]
        shown = "; ".join(
            f"{place or f'{split} row {number}'}: {detail}"
            for (split, number, detail), place in zip(problems[:SHOWN_ROWS], named, strict=False)
        )
        count = f"{len(problems)} rows cannot be used, first: " if len(problems) > 1 else ""
        more = "; ..." if len(problems) > SHOWN_ROWS else ""
        super().__init__(f"{count}{shown}{more}{f'; {advice}' if advice else ''}")


def join_refused(refused: Sequence[RefusedRows]) -> RefusedRows:
    """Return what was refused of several splits as one error."""
    shown = [
        (problem, place)
        for error in refused
        for problem, place in zip_longest(error.problems[:SHOWN_ROWS], error.places)
    ]
    rest = [problem for error in refused for problem in error.problems[SHOWN_ROWS:]]
    return RefusedRows(
        [*(problem for problem, _ in shown), *rest],
        refused[0].advice,
        [place for _, place in shown],
    )
