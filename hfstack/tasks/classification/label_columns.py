"""Read label columns as people write them, before it is found out what they mean.

Several columns of 0 and 1, lists of 0 and 1, lists written as text, whole decimals and names with
blanks around become one column of names, whole numbers or lists. What cannot be read is refused,
all rows at once.
"""

import ast
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, concatenate_datasets

from hfstack.data.places import SHOWN_ROWS, FindPlaces, RowProblem, refuse_rows
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.row_counts import RowCounts

logger = get_logger(__name__)

Values = dict[str, list[Any]]
"""The labels of each split."""

_MOST_WHOLE_DECIMALS = 20
_NUMPY_LIST = re.compile(r"\[\s*[-\d.]+(\s+[-\d.]+)*\s*\]")
_NUMPY_TEXTS = re.compile(r"""\[\s*(['"])[^'"]*\1(\s+\1[^'"]*\1)+\s*\]""")
_NO_VALUE = {"nan", "na", "n/a", "null", "none", "inf", "-inf", "#n/a", "#value!", "#div/0!"}
_WRITTEN = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_NUMBER_TEXT = re.compile(r"[-+]?\d+(\.\d+)?")
_LISTED_NUMBERS = re.compile(r"\d+(\s*,\s*\d+)*")


def read_label_columns(
    splits: dict[str, Dataset],
    columns: Sequence[str],
    *,
    kind: str | None,
    given: Sequence[str],
) -> tuple[dict[str, Dataset], str, list[str]]:
    """Return the splits with one label column, its name, and all labels if known.

    Args:
        splits: rows of each.
        columns: one column, or several of 0 and 1.
        kind: of labels, None where it is to be found out.
        given: names of all labels.

    Raises:
        ConfigError: columns, `kind` and `given` do not fit together.
        DataError: rows have no label, or one that cannot be read; all of them are counted.
    """
    if len(columns) > 1:
        return _join_columns(splits, columns, kind=kind, given=given)

    column = columns[0]
    feature = next(iter(splits.values())).features[column]
    if isinstance(feature, ClassLabel) or isinstance(getattr(feature, "feature", None), ClassLabel):
        return splits, column, list(given)

    before: Values = {name: rows[column][:] for name, rows in splits.items()}
    values = _texts_as_lists(before, column, kind)
    values = _without_blanks(values, column)
    _refuse_empty(values, column)
    if kind is None and not given:
        _refuse_joined_names(values, column)
    values = _whole_decimals(values, column, kind)
    values = _multi_hot(values, column, given)

    def changed(name: str) -> bool:  # 1.0 equals 1, and only the one is a class
        same_types = list(map(type, values[name])) == list(map(type, before[name]))
        return not same_types or values[name] != before[name]

    replaced = {
        name: _with_column(rows, column, values[name]) if changed(name) else rows
        for name, rows in splits.items()
    }
    return replaced, column, list(given)


def keep_rare_classes(
    splits: dict[str, Dataset], label_column: str, text_column: str
) -> dict[str, Dataset]:
    """Return the splits, where train has each class that the split had held out whole.

    Args:
        splits: train and eval, which were one before.
        label_column: what must occur in train.
        text_column: rows of one text stay together.
    """
    train, held_out = splits["train"], splits["eval"]

    def classes(value: Any) -> set[Any]:
        return set(value) if isinstance(value, list) else {value}

    known = set().union(*map(classes, train[label_column]))
    rare = set().union(*map(classes, held_out[label_column])) - known
    if not rare or any(isinstance(each, float) for each in rare):
        return splits

    labels, texts = held_out[label_column][:], held_out[text_column][:]
    wanted = {text for text, label in zip(texts, labels, strict=True) if classes(label) & rare}
    moved = [index for index, text in enumerate(texts) if text in wanted]
    kept = [index for index, text in enumerate(texts) if text not in wanted]
    shown = ", ".join(sorted(map(str, rare))[:SHOWN_ROWS])
    logger.warning(
        "%d rows go back from eval to train: the split had held out every row of %d classes (%s); "
        "nothing is measured of these",
        len(moved),
        len(rare),
        shown,
    )
    if not kept:
        raise DataError(
            "every held-out row is the only one of its class: name --eval_datasets, or set "
            "--eval_fraction 0"
        )
    joined = concatenate_datasets([train, held_out.select(moved)])
    return splits | {"train": joined, "eval": held_out.select(kept)}


def count_conflicts(
    splits: dict[str, Dataset],
    texts: Sequence[str],
    label_column: str,
    find_places: FindPlaces,
    row_counts: RowCounts,
) -> None:
    """Count and log the rows of each split whose text has another label too.

    Args:
        texts: columns of the texts.
        find_places: names rows by file and line.
    """
    for split, rows in splits.items():
        numbers: dict[tuple[str, ...], list[int]] = {}
        for number, row in enumerate(zip(*(rows[name][:] for name in texts), strict=True), 1):
            numbers.setdefault(tuple(str(text).strip() for text in row), []).append(number)

        labels = rows[label_column][:]
        different = [
            same
            for same in numbers.values()
            if any(labels[n - 1] != labels[same[0] - 1] for n in same)
        ]
        if not different:
            continue

        row_counts.conflicts[split] = sum(map(len, different))
        first = different[0][0]
        other = next(n for n in different[0] if labels[n - 1] != labels[first - 1])
        shown = [
            f"{labels[number - 1]!r} in {place or f'{split} row {number}'}"
            for number, place in zip(
                (first, other), find_places([(split, first), (split, other)]), strict=True
            )
        ]
        logger.warning(
            "%s: %d texts in %d rows have different labels; first %r: %s",
            split,
            len(different),
            row_counts.conflicts[split],
            str(rows[first - 1][texts[0]])[:60],
            ", ".join(shown),
        )


def several_zero_one(rows: Dataset) -> list[str]:
    """Return the columns that hold nothing but 0 and 1, where there are several."""
    first = rows[:100]
    found = [
        name for name, values in first.items() if all(_zero_one(v) is not None for v in values)
    ]
    return found if len(found) > 1 else []


def _join_columns(
    splits: dict[str, Dataset], columns: Sequence[str], *, kind: str | None, given: Sequence[str]
) -> tuple[dict[str, Dataset], str, list[str]]:
    """Make one column of lists of names from several columns of 0 and 1."""
    if kind not in (None, "multi_label"):
        raise ConfigError(f"several --label_column are several labels a row, not --kind {kind}")
    if given and len(given) != len(columns):
        raise ConfigError(f"{len(columns)} label columns, but {len(given)} --labels")

    names = list(given) or list(columns)
    problems: list[RowProblem] = []
    joined: dict[str, Dataset] = {}
    target = "labels"
    while any(target in rows.column_names for rows in splits.values()):
        target += "_"

    for split, rows in splits.items():
        hot: list[list[str]] = [[] for _ in range(len(rows))]
        for name, column in zip(names, columns, strict=True):
            for index, value in enumerate(rows[column][:]):
                has = _zero_one(value)
                if has is None:
                    problems.append((split, index + 1, f"{column} is {value!r}, not 0 or 1"))
                elif has:
                    hot[index].append(name)
        joined[split] = rows.add_column(target, hot)

    refuse_rows(problems, "of several label columns each says by 0 or 1 whether a row has it")
    return joined, target, names


def _zero_one(value: Any) -> bool | None:
    """Return whether a cell of 0 or 1 says yes; None for anything else."""
    if isinstance(value, str):
        value = _WRITTEN.get(value.strip().casefold())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _texts_as_lists(values: Values, column: str, kind: str | None) -> Values:
    """Read lists that were written as text, as pandas writes them into CSV."""
    flat = [value for split in values.values() for value in split if value is not None]
    if not flat or not all(isinstance(value, str) for value in flat) or kind == "regression":
        return values

    bracketed = [value for value in flat if _parse_list(value) is not None]
    if bracketed:
        lists = _convert(values, _parse_list, f"{column} is not a list, as in other rows")
        logger.info("column %r holds lists written as text, such as %s", column, bracketed[0])
        return lists

    commas = [value for value in flat if "," in value]
    if kind == "multi_label":
        logger.info("column %r holds text: labels are split at , ; and |", column)
        return {
            split: [
                v if v is None else [p for p in re.split(r"[,;|]", v) if p.strip()] for v in own
            ]
            for split, own in values.items()
        }
    if commas and all(_LISTED_NUMBERS.fullmatch(value.strip()) for value in flat if value.strip()):
        raise DataError(
            f"column {column!r} holds text such as {commas[0]!r}: for lists of labels set --kind "
            "multi_label; for decimals write a point"
        )
    return values


def _refuse_joined_names(values: Values, column: str) -> None:
    """Refuse a class that is several others written in one cell, as in `rain|snow`.

    Raises:
        DataError: all parts of a label are labels of their own, so it is no class beside them.
    """
    known = {label for own in values.values() for label in own if isinstance(label, str)}
    for label in sorted(known):
        parts = [part.strip() for part in re.split(r"[,;|]", label)]
        if len(parts) > 1 and all(part in known for part in parts):
            raise DataError(
                f"column {column!r} holds {label!r}, and its parts are labels of other rows: for "
                "several labels a row set --kind multi_label, for classes of such names --kind "
                "single_label"
            )


def _parse_list(text: str) -> list[Any] | None:
    """Return the list that a text writes in JSON, Python or numpy, or None.

    Python's sets and tuples are lists too.
    """
    text = text.strip()
    if text[:1] + text[-1:] not in ("[]", "()", "{}"):
        return None
    if _NUMPY_TEXTS.fullmatch(text):  # Python would join the texts
        return re.findall(r"""['"]([^'"]*)['"]""", text)
    if _NUMPY_LIST.fullmatch(text):
        return [float(each) if "." in each else int(each) for each in text[1:-1].split()]

    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError):
            continue
        if isinstance(found, set):  # of no order: the text's own hash would change with each run
            return sorted(found, key=str)
        return list(found) if isinstance(found, list | tuple) else None
    return None


def _convert(values: Values, parse: Callable[[Any], Any], problem: str) -> Values:
    """Apply a parser to every label that is there; refuse what it returns None for."""
    found: Values = {}
    problems: list[RowProblem] = []
    for split, own in values.items():
        found[split] = [None if v is None or not v.strip() else parse(v) for v in own]
        problems += [
            (split, number, f"{problem}: {value!r}")
            for number, (value, read) in enumerate(zip(own, found[split], strict=True), 1)
            if read is None and value is not None and value.strip()
        ]
    refuse_rows(problems)
    return found


def _without_blanks(values: Values, column: str) -> Values:
    """Take blanks around names away, so that "shipping " and "shipping" are one class."""
    changed: set[str] = set()

    def strip(value: Any) -> Any:
        if isinstance(value, list):
            return [strip(each) for each in value]
        if isinstance(value, str) and value != value.strip():
            changed.add(value)
            return value.strip()
        return value

    found = {split: [strip(value) for value in own] for split, own in values.items()}
    if changed:
        shown = ", ".join(repr(each) for each in sorted(changed)[:SHOWN_ROWS])
        logger.warning("column %r: blanks around labels are taken away: %s", column, shown)
    return found


def _refuse_empty(values: Values, column: str) -> None:
    """Refuse rows without a label, all at once."""

    def empty(value: Any) -> bool:
        if isinstance(value, list):
            return any(each is None or each == "" for each in value)
        return value is None or value == "" or (isinstance(value, float) and math.isnan(value))

    # Beside numbers, what pandas writes for no value is no class of its own.
    texts = {value for own in values.values() for value in own if isinstance(value, str)}
    unset = {text for text in texts if text.casefold() in _NO_VALUE}
    others = texts - unset
    if not others or not all(map(_NUMBER_TEXT.fullmatch, others)):
        unset = set()

    problems = [
        (split, number, f"no label in column {column!r}{shown}")
        for split, own in values.items()
        for number, value in enumerate(own, 1)
        for no_value in [isinstance(value, str) and value in unset]
        for shown in [f", but {value!r}" if no_value else ""]
        if no_value or empty(value)
    ]
    refuse_rows(problems, "remove such rows or label them")


def _whole_decimals(values: Values, column: str, kind: str | None) -> Values:
    """Take decimals that are all whole for classes: pandas writes 1 as 1.0."""
    flat = [value for own in values.values() for value in own]
    whole = all(isinstance(v, float) and v.is_integer() for v in flat)
    if kind not in (None, "single_label") or not flat or not whole:
        return values

    different = len(set(flat))
    if kind is None and different > _MOST_WHOLE_DECIMALS:
        logger.warning(
            "column %r holds %d different whole decimals: numbers to predict; for classes set "
            "--kind single_label",
            column,
            different,
        )
        return values
    logger.warning(
        "column %r holds whole decimals: %d classes; to predict numbers set --kind regression",
        column,
        different,
    )
    return {split: [int(value) for value in own] for split, own in values.items()}


def _multi_hot(values: Values, column: str, given: Sequence[str]) -> Values:
    """Read lists of 0 and 1 of one length as which of the given labels a row has."""
    lists = [value for own in values.values() for value in own]
    if not lists or not all(isinstance(value, list) for value in lists):
        return values
    if not all(isinstance(v, bool | int | float) and v in (0, 1) for row in lists for v in row):
        return values

    # Lists of the ids 0 and 1 name neither twice, and are not all of one length.
    lengths = {len(value) for value in lists}
    if max(lengths) < 2 or (len(lengths) > 1 and all(len(set(r)) == len(r) for r in lists)):
        return values

    width = len(given) or max(lengths)
    problems = [
        (split, number, f"{column} has {len(value)} zeros and ones, not {width}")
        for split, own in values.items()
        for number, value in enumerate(own, 1)
        if len(value) != width
    ]
    refuse_rows(problems, f"a multi-hot list has a 0 or 1 for each of the {width} labels")
    if not given:
        raise ConfigError(
            f"column {column!r} holds multi-hot lists of {width} zeros and ones: name what they "
            "stand for, in order, with --labels"
        )

    logger.info("column %r holds multi-hot lists: 0 and 1 for each of %s", column, ", ".join(given))
    return {
        split: [[name for name, has in zip(given, row, strict=True) if has] for row in own]
        for split, own in values.items()
    }


def _with_column(rows: Dataset, column: str, values: list[Any]) -> Dataset:
    # Added before the old one goes: a dataset without columns has no rows.
    added = f"{column} as read"
    return rows.add_column(added, values).remove_columns(column).rename_column(added, column)
