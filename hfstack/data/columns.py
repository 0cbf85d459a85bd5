"""Refuse rows without the columns that a recipe reads; find the texts of a row."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfstack.errors import DataError
from hfstack.hints import closest

if TYPE_CHECKING:  # so that a recipe that reads files row by row imports no pandas
    from datasets import Dataset, IterableDataset


def column_names(
    rows: "Dataset | IterableDataset | Mapping[str, Any] | Sequence[Any]",
) -> list[str]:
    """Return the columns of rows; those of a stream may be its first row's."""
    if isinstance(rows, Mapping):
        return list(rows)
    return getattr(rows, "column_names", None) or list(next(iter(rows), {}))


def require_columns(
    rows: "Dataset | IterableDataset | Sequence[Any]", *alternatives: set[str], recipe: str
) -> None:
    """Raise DataError unless the rows have all columns of at least one alternative.

    The message names the columns that were found, the closest name, and `--text_column` where that
    maps it."""
    found = column_names(rows)
    if any(columns <= set(found) for columns in alternatives):
        return

    # The alternative that lacks least is the one that was meant.
    wanted = " or ".join(" + ".join(sorted(columns)) for columns in alternatives)
    nearest = min(alternatives, key=lambda columns: len(columns - set(found)))
    unused = [name for name in found if name not in nearest]

    hints = []
    for column in sorted(nearest - set(found)):
        close = closest(column, unused, cutoff=0.5)
        can_be_mapped = column == "text" or len(nearest) == 1

        if can_be_mapped and close:
            hints.append(f"--text_column {close[0]}?")
        elif can_be_mapped:
            hints.append(f"choose one with --text_column instead of {column!r}")
        elif close:
            hints.append(f"rename {close[0]!r} to {column!r}?")
        else:
            hints.append(f"add {column!r}")

    raise DataError(
        f"{recipe} needs the columns {wanted}; found: {', '.join(found) or 'none'}; "
        f"{'; '.join(hints)}"
    )


def require_text(splits: Mapping[str, Any], column: str, *, recipe: str) -> None:
    """Raise DataError unless each split has a column of texts.

    Numbers, lists and objects are no text.
    """
    for rows in splits.values():
        require_columns(rows, {column}, recipe=recipe)
        feature = (getattr(rows, "features", None) or {}).get(column)
        kind = getattr(feature, "dtype", type(feature).__name__)
        if feature is None:  # of a stream, the first row says
            kind = type(next(iter(rows), {column: ""})[column]).__name__

        if kind not in ("string", "large_string", "str"):
            raise DataError(
                f"{recipe} needs text in the column {column!r}, which holds {kind}: name another "
                "with --text_column, or write its values as text"
            )


def strings_of(value: Any) -> Iterator[str]:
    """Yield every string of a row at any depth, so that no column has to be named."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from strings_of(part)
