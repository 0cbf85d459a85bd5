"""Write JSON Lines files that are either whole or not there."""

import datetime
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hfstack.disk import atomic_write
from hfstack.errors import DataError


@contextmanager
def write_jsonl(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that writes one row.

    The file gets its name when the block ends without an exception.

    Until then the rows are in `<path>.partial`, which an exception removes. Dates are written in
    ISO 8601.

    Raises:
        DataError: the file cannot be written (disk full, no permission), or a value is none that
            JSON has.
    """
    encode = json.JSONEncoder(ensure_ascii=False, default=_as_json).encode

    # A lone surrogate cannot be UTF-8; written as \ud83d it is what JSON itself calls it.
    with atomic_write(path, errors="backslashreplace") as file:

        def write(row: dict[str, Any]) -> None:
            try:
                line = encode(row)
            except TypeError as error:
                raise DataError(f"{path}: row with columns {', '.join(row)}: {error}") from None
            try:
                file.write(line + "\n")
            except OSError as error:
                raise DataError(f"{path}: cannot be written: {error.strerror}") from None

        yield write


def _as_json(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time):  # datetime is a date
        return value.isoformat()
    raise TypeError(
        f"{type(value).__name__} is no JSON value; remove the column or turn it into text"
    )
