"""Say of a row that it cannot be used, and why."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST_LEVELS = 64


@dataclass(slots=True)
class BadRow:
    """Why a row cannot be used: a reason to count by, and what is wrong with it."""

    reason: str
    detail: str


class UnreadRow(dict[str, Any]):
    """Stand for a row that cannot be used where each row has its place."""

    def __init__(self, problem: str) -> None:
        super().__init__()
        self.problem = problem


class UnfitNumber(float):
    """NaN or Infinity, which Python writes into JSON although JSON has neither."""


class UnfitText(str):
    """The name of a column whose value no UTF-8 can hold: half of a surrogate pair."""


UNFIT = {UnfitNumber, UnfitText}


def unfit_value(value: UnfitNumber | UnfitText) -> BadRow:
    """Say what is wrong with a value that no column can hold."""
    if isinstance(value, UnfitNumber):
        name = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return BadRow("bad JSON", f"{name} is not a JSON value; use null")
    detail = f"half of a surrogate pair in {str(value)!r}, which no UTF-8 text can hold"
    return BadRow("broken character", detail)


# (line where the row begins, counted from 1; the row; its text in the file, where a row is a line)
NumberedRow = tuple[int, dict[str, Any] | BadRow, str | None]

# takes what is worth saying of a file; the reader of a source says it once for all of its files
Note = Callable[[str], None]


def too_large(max_row_bytes: int) -> BadRow:
    """Return what is wrong with a row that is larger than rows may be."""
    return BadRow(
        "too large",
        f"more than {max_row_bytes / 2**20:.4g} MiB in one row; --max_row_mib sets the limit",
    )


def nests_too_deeply(value: Any) -> BadRow | None:
    """Return what is wrong with a row of too many lists and objects in one another."""
    within = [value]
    for _ in range(MOST_LEVELS):
        lists = [each for each in within if type(each) is list]
        objects = [each for each in within if type(each) is dict]
        within = [one for each in lists for one in each if type(one) in (list, dict)]
        within += [one for each in objects for one in each.values() if type(one) in (list, dict)]
        if not within:
            return None
    return BadRow("nested too deeply", f"more than {MOST_LEVELS} lists and objects in one another")


def bad_line(error: Exception, lines: io.BufferedReader, line: bytes) -> BadRow:
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
            return BadRow(
                "nested too deeply", f"more than {MOST_LEVELS} lists and objects in one another"
            )

    return BadRow("bad JSON", str(error))
