"""Read local files as rows that are checked against each other.

All have the same keys and the same types, and none is dropped silently.

The first rows of a source say which keys and which types its rows have (what most of them have). A
row that differs, or that cannot be read at all, is a bad row: it stops the run, or is skipped or
quarantined, and is counted by reason.
"""

import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TextIO

from hfstack.data.reading.bad_rows import BadRow, NumberedRow, UnreadRow
from hfstack.data.reading.checker import RowChecker, has_odd_number
from hfstack.data.reading.files import DataFile
from hfstack.data.reading.formats import read_file
from hfstack.data.reading.layouts import Purpose, standard_rows
from hfstack.data.reading.read_report import ReadReport
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.progress import follow

logger = get_logger(__name__)

OnBadRow = Literal["fail", "skip", "quarantine"]
FIRST_ROWS = 100  # rows that decide the keys and the types of a source


def read_rows(
    files: list[DataFile],
    *,
    on_bad_row: OnBadRow = "fail",
    quarantine_file: Path | None = None,
    max_rows: int | None = None,
    purpose: Purpose = "rows",
    columns: Collection[str] | None = None,
    numbers: Collection[str] | None = None,
    keep_places: bool = False,
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
        columns: those that are read. What others hold makes no row a bad one: `report.left_out`
            names those that are not in every row, or change their type. None for all.
        numbers: columns of a table whose cells may be numbers; those of others are text as it is
            written, `3.50` too. None for the columns that are not read.
        keep_places: yield an UnreadRow for each row that is left out.
        report: filled while reading, and logged at the end.

    Raises DataError when there is no good row.
    """
    report = report if report is not None else ReadReport()
    name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"

    with ExitStack() as stack:
        reject = _rejecter(on_bad_row, quarantine_file, report, stack, files[0])
        checker = RowChecker(report, columns, numbers)

        for file in files:
            empty = True
            rows = _with_first_rows(file, purpose, checker)
            for line, row, text in follow(rows, f"reading {file.path.name}"):
                empty = False
                if not isinstance(row, dict):
                    reject(file, line, row, None, text)
                    if keep_places:
                        yield UnreadRow(row.detail)
                    continue

                # The keys and types of a flat row that was accepted before need no second look.
                shape = (*row, *map(type, row.values()))
                if shape not in checker.accepted or has_odd_number(row, shape):
                    bad = checker.examine(row, shape, file, line)
                    if bad:
                        reject(file, line, bad, row, text)
                        if keep_places:
                            yield UnreadRow(bad.detail)
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
    file: DataFile, purpose: Purpose, checker: RowChecker
) -> Iterator[NumberedRow]:
    """Read a file; find the columns of its source from the first rows, if unknown."""
    numbered = standard_rows(read_file(file, checker.report.note), purpose, checker.report.note)
    if not checker.keys:
        first = list(islice(numbered, FIRST_ROWS))
        checker.find_columns(file, [(line, row) for line, row, _ in first if type(row) is dict])
        numbered = chain(first, numbered)

    return checker.with_numbers(numbered) if file.is_table else numbered


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
