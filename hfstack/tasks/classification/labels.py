"""Find what a label column means: one class, several labels, or a number.

Names and numbers to ids, and back.

The set of labels comes from the train rows, from the data's own declaration (a Hub dataset's
ClassLabel), from a list that the user gives, or from a model that has been trained on it before. A
label outside of the set is refused with its row, never mapped to something near.
"""

import html
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import ClassLabel, Dataset

from hfstack.data.places import RowProblem, refuse_rows
from hfstack.errors import ConfigError, DataError
from hfstack.hints import describe_too_few_classes
from hfstack.logs import get_logger

logger = get_logger(__name__)

LabelKind = Literal["single_label", "multi_label", "regression"]
OLD_KINDS: dict[str, LabelKind] = {  # the names before 0.2, still read
    "single": "single_label",
    "several": "multi_label",
    "number": "regression",
}
Target = int | float | list[float]

MOST_LABELS = 1000
_KIND_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
}
_PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


@dataclass(frozen=True)
class LabelSet:
    """The labels of a task: `values` in the label column, `names` for readers, by id."""

    kind: LabelKind
    names: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()

    @property
    def count(self) -> int:
        """Return a model's number of outputs for this task: a number has one."""
        return 1 if self.kind == "regression" else len(self.names)

    @property
    def problem_type(self) -> str:
        """Return what transformers calls the kind."""
        return _PROBLEMS[self.kind]

    @property
    def id2label(self) -> dict[int, str]:
        """Return names by id, for config.json."""
        return dict(enumerate(self.names)) or {0: "score"}


def find_labels(
    rows: Dataset,
    column: str,
    *,
    kind: LabelKind | None = None,
    name_column: str | None = None,
    given: Sequence[str] = (),
) -> LabelSet:
    """Return the labels of the train rows.

    Without `kind`, text and whole numbers are classes, lists are several labels a row, and decimals
    are numbers to predict. Classes are in order: of `given`, of a ClassLabel's names, or sorted.

    Args:
        name_column: column with the name of each row's class, where `column` holds whole numbers.
        given: names of all labels, when the rows may lack some.

    Raises:
        ConfigError: `kind` does not fit the column, or `name_column` is not there.
        DataError: a label is missing or of another type than the others, there is one class only,
            or far too many, or a class has two names.
    """
    values = rows[column][:]
    feature = rows.features[column]
    found = _value_type(values, column)
    if kind is None:
        by_type: dict[type, LabelKind] = {list: "multi_label", float: "regression"}
        kind = by_type.get(found, "single_label")

    if kind == "regression":
        if found not in (int, float):
            raise ConfigError(
                f"column {column!r} holds {_KIND_NAMES[found]}: a number to predict must be a "
                "number"
            )
        return LabelSet("regression")

    if (found is list) != (kind == "multi_label") or found is float:
        raise ConfigError(
            f"column {column!r} holds {_KIND_NAMES[found]}, which cannot be labels of kind {kind!r}"
        )

    # every single label of the rows, and what describes one
    flat = values
    if kind == "multi_label":
        feature = getattr(feature, "feature", None)
        flat = [value for row in values for value in row]
        if flat and _value_type(flat, column) is list:
            raise DataError(f"column {column!r} holds lists of lists, not lists of labels")

    # What the data declares comes first: its numbers mean nothing else.
    if isinstance(feature, ClassLabel):
        names = tuple(map(str, feature.names))
        return _checked_labels(LabelSet(kind, names, tuple(range(len(names)))), flat, column)

    if given:
        whole = found is int or (kind == "multi_label" and bool(flat) and type(flat[0]) is int)
        listed = given_values(given, whole=whole)
        return _checked_labels(LabelSet(kind, tuple(given), listed), flat, column)

    # Sorted, so that the ids do not depend on the order of the rows.
    ordered = tuple(sorted(set(flat)))
    if len(ordered) > MOST_LABELS:
        raise DataError(
            f"column {column!r} has {len(ordered)} different labels in {len(rows)} rows; is it "
            "the right column? (numbers to predict: --kind regression)"
        )

    known: dict[Any, str] = {}
    if name_column and kind == "single_label":
        known = _class_names(rows, column, name_column)
    shown = tuple(known.get(value, str(value)) for value in ordered)
    return _checked_labels(LabelSet(kind, shown, ordered), flat, column)


def given_values(given: Sequence[str], *, whole: bool) -> tuple[Any, ...]:
    """Return what the label column holds for names that were given.

    Args:
        whole: the column holds whole numbers: the names themselves where they are numbers, else
            their places.
    """
    if not whole:
        return tuple(given)
    if all(name.lstrip("-").isdigit() for name in given):
        return tuple(int(name) for name in given)
    return tuple(range(len(given)))


def label_targets(
    rows: Dataset, column: str, labels: LabelSet, *, name: str = "train"
) -> list[Target]:
    """Return the target of each row: a class id, a 0/1 for each label, or a number.

    Raises:
        DataError: a row has a label outside of the set, or none.
    """
    ids: dict[Any, int] = {value: index for index, value in enumerate(labels.values)}
    ids |= {label: index for index, label in enumerate(labels.names) if label not in ids}
    targets: list[Target] = []
    problems: list[RowProblem] = []

    for number, value in enumerate(rows[column][:], start=1):
        try:
            targets.append(_target(value, ids, labels, column))
        except DataError as error:
            problems.append((name, number, str(error)))

    refuse_rows(problems)
    return targets


def log_classes(rows: Dataset, column: str, labels: LabelSet) -> None:
    """Log each class with its rows and names that may be one, or the numbers' range."""
    values = rows[column][:]
    if labels.kind == "regression":
        logger.info("numbers to predict: %g to %g in %d rows", min(values), max(values), len(rows))
        return

    ids = {value: index for index, value in enumerate(labels.values)}
    counts = Counter(
        ids.get(each)
        for value in values
        for each in (value if isinstance(value, list) else [value])
    )
    shown = [f"{name} {counts[index]}" for index, name in enumerate(labels.names)]
    if labels.kind == "multi_label":
        shown.append(f"none {sum(not value for value in values)}")
    more = f", ... ({len(shown) - 50} more)" if len(shown) > 50 else ""
    what = "labels" if labels.kind == "multi_label" else "classes"
    logger.info("%d %s: %s%s", labels.count, what, ", ".join(shown[:50]), more)

    if "-1" in labels.names and counts[labels.names.index("-1")]:
        logger.warning(
            "-1 is a class of %d rows: in many published sets it marks rows without a label",
            counts[labels.names.index("-1")],
        )
    alike = Counter(map(_spelled_alike, labels.names))
    if same := [name for name in labels.names if alike[_spelled_alike(name)] > 1]:
        groups = ({name.casefold() for name in same}, {_spelled_alike(name) for name in same})
        alone = "in case" if len(groups[0]) == len(groups[1]) else "in how they are written"
        logger.warning("classes that differ %s alone: %s", alone, ", ".join(same[:10]))


def _spelled_alike(name: str) -> str:
    """Return what two names share that a reader takes for one, such as 1 and 1.0."""
    try:
        return repr(float(name))
    except ValueError:
        plain = unicodedata.normalize("NFKC", html.unescape(name)).casefold()
        return " ".join("".join(c for c in plain if unicodedata.category(c) != "Cf").split())


def _target(value: Any, ids: Mapping[Any, int], labels: LabelSet, column: str) -> Target:
    """Return the target of one row, or say why there is none."""
    if labels.kind == "regression":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"{column} is {value!r}, not a number to learn")
        return float(value)
    if labels.kind == "single_label":
        return _lookup(value, ids, labels, column)
    if not isinstance(value, list):
        raise DataError(f"{column} is {value!r}, not a list of labels")
    chosen = {_lookup(one, ids, labels, column) for one in value}
    return [float(index in chosen) for index in range(labels.count)]


def class_weights(targets: Sequence[Target], labels: LabelSet) -> list[float]:
    """Return a weight for each class: rows / (classes * rows of the class).

    A mean row weighs 1.

    With several labels a row, how much a row that has the label counts: rows without it over rows
    with it.

    Raises:
        ConfigError: numbers have no classes.
        DataError: a label has no row, so that it has no weight.
    """
    if labels.kind == "regression":
        raise ConfigError("--class_weights balances classes, but the labels are numbers to predict")

    if labels.kind == "multi_label":
        counts = Counter(
            index
            for row in targets
            if isinstance(row, list)
            for index, has in enumerate(row)
            if has
        )
    else:
        counts = Counter(targets)  # pyright: ignore[reportArgumentType]

    if absent := [labels.names[index] for index in range(labels.count) if not counts[index]]:
        raise DataError(
            f"--class_weights: no train row has the label {', '.join(absent[:5])}, so it has no "
            "weight"
        )

    total = len(targets)
    if labels.kind == "multi_label":
        return [(total - counts[index]) / counts[index] for index in range(labels.count)]
    return [total / (labels.count * counts[index]) for index in range(labels.count)]


def _value_type(values: Iterable[Any], column: str) -> type:
    """Return the one type of a column's values.

    Whole numbers among decimals count as decimals.
    """
    first: dict[type, tuple[int, Any]] = {}
    for number, value in enumerate(values, start=1):
        if value is None:
            raise DataError(
                f"row {number} has no label in column {column!r}; remove it or label it"
            )
        if type(value) not in first:
            first[type(value)] = (number, value)

    if set(first) == {int, float}:
        return float

    if len(first) > 1:
        seen = ", ".join(
            f"{_KIND_NAMES.get(t, t.__name__)} in row {n} ({v!r})" for t, (n, v) in first.items()
        )
        raise DataError(f"column {column!r} mixes types: {seen}; write all labels in one way")

    kind = next(iter(first))
    if kind not in _KIND_NAMES:
        raise DataError(f"column {column!r} holds {kind.__name__}, not labels")
    return kind


def _checked_labels(labels: LabelSet, values: Sequence[Any], column: str) -> LabelSet:
    """Refuse a set or rows that teach nothing: one class."""
    if len(set(labels.names)) < len(labels.names):
        twice = next(name for name, count in Counter(labels.names).items() if count > 1)
        raise DataError(f"column {column!r}: two classes have the name {twice!r}")

    present = set(values)
    if len(present) < 2 and not (labels.kind == "multi_label" and present):
        names = labels.names if len(labels.names) == len(present) else map(str, present)
        raise DataError(describe_too_few_classes(column, names))

    return labels


def _class_names(rows: Dataset, column: str, name_column: str) -> dict[Any, str]:
    """Return names of the values of a label column, by another column."""
    if name_column not in rows.column_names:
        raise ConfigError(
            f"--label_name_column {name_column!r}: found {', '.join(rows.column_names)}"
        )

    names: dict[Any, str] = {}
    for value, name in zip(rows[column][:], rows[name_column][:], strict=True):
        if names.setdefault(value, str(name)) != str(name):
            raise DataError(
                f"label {value!r} has two names in {name_column!r}: {names[value]!r} and {name!r}"
            )

    return names


def _lookup(value: Any, ids: Mapping[Any, int], labels: LabelSet, column: str) -> int:
    index = ids.get(value) if isinstance(value, str | int) else None
    if index is None:
        shown = ", ".join(labels.names[:10]) + (", ..." if len(labels.names) > 10 else "")
        hint = "; unlabelled test rows cannot be scored" if value == -1 else ""
        raise DataError(
            f"{column} is {value!r}, which is none of the {len(labels.names)} labels {shown}{hint}"
        )

    return index
