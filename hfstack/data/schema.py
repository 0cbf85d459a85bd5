"""Check that rows hold what a task needs.

Text, messages, prompts and completions, preferences, or labelled text.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from datasets import Dataset

from hfstack.errors import ConfigError, DataError


def _text(value: Any) -> str | None:
    """Return what is wrong with a value that should be text, or None."""
    return None if isinstance(value, str) else f"expected text, got {_shown(value)}"


def _messages(value: Any) -> str | None:
    """Return what is wrong with a value that should be a conversation, or None."""
    if not isinstance(value, list) or not value:
        return f"expected a list of messages {{role, content}}, got {_shown(value)}"

    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            return (
                f"message {number}: expected an object with role and content, got {_shown(message)}"
            )

        if "from" in message and "value" in message:
            return (
                f"message {number} has the keys 'from' and 'value'; rename them to 'role' and "
                "'content'"
            )
        if not isinstance(message.get("role"), str):
            return f"message {number}: 'role' must be text, got {_shown(message.get('role'))}"
        if not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
            return f"message {number}: 'content' must be text, got {_shown(message.get('content'))}"

    return None


def _text_or_messages(value: Any) -> str | None:
    return None if isinstance(value, str) else _messages(value)


def _label(value: Any) -> str | None:
    return (
        None
        if isinstance(value, str | int | float)
        else f"expected a label (number or text), got {_shown(value)}"
    )


TASKS: dict[str, dict[str, Callable[[Any], str | None]]] = {
    "text": {"text": _text},
    "messages": {"messages": _messages},
    "prompt+completion": {"prompt": _text_or_messages, "completion": _text_or_messages},
    "prompt+chosen+rejected": {
        "prompt": _text_or_messages,
        "chosen": _text_or_messages,
        "rejected": _text_or_messages,
    },
    "text+label": {"text": _text, "label": _label},
}


def check_schema(
    rows: Iterable[Any],
    task: str,
    *,
    text_column: str = "text",
    max_rows: int | None = 10_000,
    name: str = "data",
) -> None:
    """Raise DataError at the first row that is not what `task` needs.

    Args:
        rows: a Dataset, an IterableDataset or a list of rows; rows are counted from 1.
        task: a key of `TASKS`.
        text_column: the column that holds the text, in the tasks that read one.
        max_rows: how many first rows to look at; None for all.
        name: what the message calls the rows, such as a path or a split.
    """
    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}; known are {', '.join(TASKS)}")

    checks = {
        text_column if column == "text" else column: check for column, check in TASKS[task].items()
    }
    for number, row in enumerate(islice(_only(rows, checks), max_rows), 1):
        for column, check in checks.items():
            if column not in row:
                found = ", ".join(row) or "none"
                raise DataError(
                    f"{name} row {number}: {task} needs the column {column!r}; found: {found}"
                )
            if problem := check(row[column]):
                raise DataError(f"{name} row {number}, column {column!r}: {problem}")


def _only(rows: Iterable[Any], columns: Iterable[str]) -> Iterator[Any]:
    """Iterate over rows; over a Dataset in batches of the wanted columns, for speed."""
    if not isinstance(rows, Dataset) or not set(columns) <= set(rows.column_names):
        yield from rows
        return
    for batch in rows.select_columns(list(columns)).iter(batch_size=1000):
        assert isinstance(batch, dict)
        yield from (
            dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)
        )


def _shown(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
