"""Say of a row that it cannot be used, and why."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class BadRow:
    """Why a row cannot be used: a reason to count by, and what is wrong with it."""

    reason: str
    detail: str


# (line where the row begins, counted from 1; the row; its text in the file, where a row is a line)
NumberedRow = tuple[int, dict[str, Any] | BadRow, str | None]

# takes what is worth saying of a file; the reader of a source says it once for all of its files
Note = Callable[[str], None]


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
            return BadRow("bad JSON", "objects are nested too deeply")

    return BadRow("bad JSON", str(error))
