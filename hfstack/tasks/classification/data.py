"""Load labelled texts: by the user's columns, or as a task of GLUE has them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfstack.data.places import place_finder, refuse_rows, rows_by_line
from hfstack.data.sources import DataArgs, Source, load_mixture, load_splits
from hfstack.errors import ConfigError, DataError
from hfstack.hints import closest
from hfstack.logs import get_logger
from hfstack.row_counts import RowCounts
from hfstack.tasks.classification.glue import GLUE_ID, GlueTask, glue_task
from hfstack.tasks.classification.label_columns import (
    count_conflicts,
    keep_rare_classes,
    read_label_columns,
    several_zero_one,
)
from hfstack.tasks.classification.labels import (
    OLD_KINDS,
    LabelKind,
    LabelSet,
    Target,
    find_labels,
    label_targets,
    log_classes,
)
from hfstack.tokens.text_rows import (
    Overlong,
    encode_texts,
    read_overlong,
    read_texts,
    usable_rows,
)

logger = get_logger(__name__)


@dataclass
class LabelArgs:
    """Which columns hold the texts and the labels, and what the labels mean."""

    task: str | None = None
    """A task of GLUE: sst2, cola, mrpc, rte, stsb, qqp, mnli or qnli. Sets columns, labels, metric,
    data; none for own data."""
    text_pair_column: str | None = None
    """Column of a second text, where rows are pairs."""
    label_column: list[str] = field(default_factory=lambda: ["label"])
    """Column of the label: text or whole numbers for classes, a list (of names, or of 0 and 1 for
    each of --labels) for several labels, a decimal for a number. Or several columns of 0 and 1.
    """
    label_name_column: str | None = None
    """Column with the name of each row's class, where the labels are numbers."""
    labels: list[str] = field(default_factory=list)
    """Names of all labels in order, when the train rows may lack some; by default those that occur.
    """
    kind: Literal[
        "auto", "single_label", "multi_label", "regression", "single", "several", "number"
    ] = "auto"
    """What is predicted: one class (single_label), several labels a row (multi_label), or a number
    (regression); auto reads it from the label column. single, several and number are the old names.
    """
    max_length: int | None = None
    """Longest text in tokens; by default what model and tokenizer can read."""
    overlong: Overlong = "truncate"
    """Longer texts: truncate (formerly cut), drop the row or fail; they are counted and logged."""

    def __post_init__(self) -> None:
        if isinstance(self.label_column, str):  # a YAML names one column without a list
            self.label_column = [self.label_column]
        if self.kind in OLD_KINDS:
            new = OLD_KINDS[self.kind]
            logger.warning(
                "--kind %s is now --kind %s; the old name will be removed in 0.3", self.kind, new
            )
            self.kind = new
        if self.kind not in ("auto", *get_args(LabelKind)):
            known = ", ".join(get_args(LabelKind))
            raise ConfigError(f"kind must be auto, {known}, got {self.kind!r}")
        self.overlong = read_overlong(self.overlong)
        self.task = None if self.task == "none" else self.task
        if self.task is not None:
            glue_task(self.task)


@dataclass(frozen=True)
class LabelledRows:
    """The rows of each split, what their labels are, and where their texts stand."""

    splits: dict[str, Dataset]
    inputs: dict[str, list[dict[str, Any]]]
    labels: LabelSet
    columns: tuple[str, str | None]
    label_column: str
    task: GlueTask | None
    sources: list[Source] = field(default_factory=list)

    @property
    def benchmark(self) -> tuple[str, ...]:
        """Return the metrics whose mean is the task's score in GLUE; none for own data."""
        return self.task.metrics if self.task is not None else ()


def load_labelled(
    data_args: DataArgs,
    label_args: LabelArgs,
    *,
    quarantine_file: Path | None = None,
    row_counts: RowCounts | None = None,
) -> LabelledRows:
    """Load train and held-out rows and find out what their labels mean.

    With a task and no datasets, from the Hub.

    MNLI without own eval_datasets has a second held-out split, `eval_mismatched`. `data_args` is
    filled with the sources of the task.

    Raises:
        ConfigError: a column does not fit, or streaming was asked for.
        DataError: rows are missing, or their labels cannot be learned.
    """
    task = glue_task(label_args.task) if label_args.task else None
    more = _name_sources(data_args, task, label_args.task)
    pairs = label_args.text_pair_column is not None or (
        task is not None and task.columns[1] is not None
    )

    # A pair is a row of its own although its first text is also in another one.
    seen = replace(data_args, text_column="") if pairs and data_args.eval_datasets else data_args
    row_counts = RowCounts() if row_counts is None else row_counts
    read = _columns_read(data_args, label_args, task)
    splits = load_splits(
        seen,
        columns=read,
        numbers=label_args.label_column,
        quarantine_file=quarantine_file,
        row_counts=row_counts,
    )

    for source in more:
        splits["eval_mismatched"] = load_mixture([source], max_rows=data_args.max_rows)
        row_counts.read("eval_mismatched", len(splits["eval_mismatched"]))
    found_columns = splits["train"].column_names
    columns = _text_columns(data_args, label_args, task, found_columns)
    read = [*columns, *label_args.label_column, label_args.label_name_column]
    row_counts.name_columns(found_columns, read)

    _refuse_missing_columns(splits, columns, label_args, task)

    kind, given = _asked_labels(label_args, task)
    sources = [*data_args.datasets, *data_args.eval_datasets]
    _leave_out_unlabelled(splits, label_args.label_column[0], sources, row_counts)
    with rows_by_line(splits, columns, label_args.label_column, sources):
        rows_of, label_column, given = read_label_columns(
            dict(splits), label_args.label_column, kind=kind, given=given
        )
    if not data_args.eval_datasets and "eval" in rows_of:
        rows_of = keep_rare_classes(rows_of, label_column, columns[0])
        row_counts.take_back(len(splits["eval"]) - len(rows_of["eval"]))

    found = find_labels(
        rows_of["train"],
        label_column,
        kind=kind,
        name_column=label_args.label_name_column,
        given=given,
    )
    log_classes(rows_of["train"], label_column, found)

    texts = [column for column in columns if column is not None]
    find_places = place_finder(rows_of, texts, label_args.label_column, sources)
    count_conflicts(rows_of, texts, label_column, find_places, row_counts)
    return LabelledRows(rows_of, splits.inputs, found, columns, label_column, task, sources)


@dataclass(frozen=True)
class Encoded:
    """One split as token ids with `labels` and `length`, and its rows' indices."""

    rows: Dataset
    texts: list[str]
    targets: list[Target]
    places: list[int]  # of the rows in the split, from 0


def encode_split(
    labelled: LabelledRows,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    overlong: Overlong,
    skip_empty: bool,
    row_counts: RowCounts | None = None,
) -> Encoded:
    """Tokenize a split; refuse or count texts that are empty or too long.

    Raises:
        DataError: a text is empty or no text, a label is outside of the set, or no row is left.
    """
    rows = labelled.splits[name]
    values = {column: rows[column][:] for column in labelled.columns if column is not None}
    texts, pairs, empty = read_texts(values, labelled.columns, name=f"{name} row")
    label = labelled.label_column
    with rows_by_line(labelled.splits, labelled.columns, [label], labelled.sources):
        targets = label_targets(rows, label, labelled.labels, name=name)
        if not skip_empty:
            problems = [(name, index + 1, "the text is empty") for index in empty]
            refuse_rows(problems, "remove such rows, or --on_bad_row skip")

    # Whole first: only then is it known which are too long, and by how much.
    whole = encode_texts(tokenizer, texts, pairs, max_length=None)
    kept = usable_rows(
        whole,
        empty,
        max_length=max_length,
        overlong=overlong,
        skip_empty=skip_empty,
        name=name,
        row_counts=row_counts,
    )

    # The tokenizer truncates, since it knows which of a pair to shorten and keeps special tokens.
    long = [i for i in kept if max_length is not None and len(whole[i]["input_ids"]) > max_length]
    second = None if pairs is None else [pairs[i] for i in long]
    truncated = encode_texts(tokenizer, [texts[i] for i in long], second, max_length=max_length)
    for index, row in zip(long, truncated, strict=True):
        whole[index] = row

    columns: dict[str, list[Any]] = {key: [whole[i][key] for i in kept] for key in whole[0]}
    columns |= {
        "labels": [targets[i] for i in kept],
        "length": [len(whole[i]["input_ids"]) for i in kept],
    }

    shown = [text if pairs is None else f"{text} ‖ {pairs[i]}" for i, text in enumerate(texts)]
    kept_texts, kept_targets = [shown[i] for i in kept], [targets[i] for i in kept]
    return Encoded(Dataset.from_dict(columns), kept_texts, kept_targets, list(kept))


def _name_sources(data_args: DataArgs, task: GlueTask | None, name: str | None) -> list[Source]:
    """Name the sources of a task where no others are; return further held-out ones."""
    if task is None or data_args.datasets:
        return []
    data_args.datasets = [Source(GLUE_ID, name)]
    if data_args.eval_datasets:
        return []
    first, *more = (Source(GLUE_ID, name, split) for split in task.eval_splits)
    data_args.eval_datasets = [first]
    return more


def _asked_labels(label_args: LabelArgs, task: GlueTask | None) -> tuple[Any, list[str]]:
    """Return the kind that was asked for, None for auto, and the names given."""
    given = label_args.labels or list(task.labels if task else ())
    if label_args.kind != "auto":
        return label_args.kind, given
    if task is None:
        return None, given
    return "single_label" if task.labels else "regression", given


def _refuse_missing_columns(
    splits: dict[str, Dataset],
    columns: tuple[str, str | None],
    label_args: LabelArgs,
    task: GlueTask | None,
) -> None:
    """Refuse splits without the columns of texts and labels; suggest others.

    Raises:
        DataError: naming the split, the column, what was found, and the flags.
    """
    for name, rows in splits.items():
        if absent := [
            c
            for c in (*columns, *label_args.label_column)
            if c is not None and c not in rows.column_names
        ]:
            usual = f"GLUE's have {', '.join(filter(None, task.columns))}; " if task else ""
            several = several_zero_one(rows)
            way = f" (several columns of 0 and 1: {' '.join(several)})" if several else ""
            # a column of another name that is read already is not meant
            others = [c for c in rows.column_names if c not in columns]
            close = closest(absent[0], others)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise DataError(
                f"{name}: no column {absent[0]!r}, found {', '.join(rows.column_names)}; "
                f"{usual}{meant}set --text_column, --text_pair_column or --label_column{way}"
            )


def _columns_read(data_args: DataArgs, label_args: LabelArgs, task: GlueTask | None) -> set[str]:
    """Return every column that texts or labels may be read from."""
    named = {data_args.text_column, label_args.text_pair_column, *label_args.label_column}
    named |= {label_args.label_name_column, *(task.columns if task else ()), "text_pair"}
    return {name for name in named if name is not None}


def _leave_out_unlabelled(
    splits: dict[str, Dataset], label: str, sources: Sequence[Source], row_counts: RowCounts
) -> None:
    """Leave out documents of a folder beside those of the classes: `unsup` of aclImdb."""
    files = (file for source in sources if source.is_local for file in source.find_files())
    if label != "label" or not any(file.label == "" for file in files):
        return

    for name, rows in splits.items():
        labelled = [index for index, value in enumerate(rows[label]) if value is not None]
        row_counts.leave_out(name, "in a folder of no class", len(rows) - len(labelled))
        splits[name] = rows.select(labelled)


def _text_columns(
    data_args: DataArgs, label_args: LabelArgs, task: GlueTask | None, found: list[str]
) -> tuple[str, str | None]:
    """Return the text columns: the task's if they are there, else those named."""
    if task is None:
        return data_args.text_column, label_args.text_pair_column
    if all(column is None or column in found for column in task.columns):
        return task.columns
    second = label_args.text_pair_column or ("text_pair" if task.columns[1] is not None else None)
    return data_args.text_column, second
