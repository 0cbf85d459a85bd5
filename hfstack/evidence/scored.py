"""Hold what a model did on labelled rows, and measure any part of them.

What the recipe `score` does is the same for every task once the task is two things: a `Scorer`,
which is a loaded model and the columns that it reads, and what it returns of rows, a `Scored`.
"""

import tempfile
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from datasets import Dataset
from transformers import Trainer
from trl import ModelConfig

from hfstack.data.reading.layouts import Purpose
from hfstack.data.sources import OnBadRow, Source, as_sources
from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.evidence.paired import Score
from hfstack.models.contents import USES, ModelKind, identify_model
from hfstack.models.loading import require_model_name

Tables = dict[str, tuple[list[str], list[list[Any]]]]


@dataclass
class ScoreArgs:
    """Which labelled rows to score, and how they are read."""

    datasets: list[Source] = field(default_factory=list)
    """Labelled rows: local files, globs, folders or Hub ids."""
    text_column: str | None = None
    """Column of the text (tags: of the words; answers: of the question; seq2seq: of the source;
    sft: of the prompt); by default the one that the model was trained on.
    """
    text_pair_column: str | None = None
    """Column of the second text (answers: of the context); by default the one that the model was
    trained on.
    """
    label_column: list[str] = field(default_factory=list)
    """Column of what is right: of the label, tags, answers, target or completion; by default the
    usual name.
    """
    batch_size: int | None = None
    """Rows of a forward pass; by default as many as in the evaluations of training."""
    max_length: int | None = None
    """Longest text in tokens; by default what the model was trained with."""
    max_rows: int | None = None
    """Score at most this many rows of each dataset; all by default."""
    on_bad_row: OnBadRow = "fail"
    """What to do with a malformed row of a local file: fail, skip it, or quarantine it into a file.
    """

    def __post_init__(self) -> None:
        self.datasets = as_sources(self.datasets)
        if isinstance(self.label_column, str):  # a YAML names one column without a list
            self.label_column = [self.label_column]
        for name in ("batch_size", "max_length", "max_rows"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1, got {value}")

    def label(self, usual: str) -> str:
        """Return the one column of what is right.

        Raises:
            ConfigError: several were named where a task has one.
        """
        if len(self.label_column) > 1:
            raise ConfigError(
                f"--label_column {' '.join(self.label_column)}: only a classifier of several "
                "labels reads several"
            )
        return self.label_column[0] if self.label_column else usual


@dataclass(frozen=True)
class Scored:
    """What a model did on rows, one entry of each list for each row that it read."""

    metrics: dict[str, float]
    """Of all rows, named as training names them."""
    main: str
    """The metric that the rows are compared by, without `eval_`."""
    places: list[int]
    """Of the rows in the file, from 0."""
    answers: list[dict[str, Any]]
    """What the model said of a row, and what is right."""
    measure: Callable[[Sequence[int]], dict[str, float]]
    """Measures some of the rows, by their index here, with intervals; names without `eval_`."""
    resample: Score
    """Measures rows fast, some twice, some never, without intervals: what models are compared by.
    """
    right: list[bool] | None = None
    """Return whether each row is right; None where a row is neither right nor wrong."""
    units: list[Hashable] | None = None
    """Rows that belong together, such as questions on one text; None where each stands alone."""
    tables: Tables = field(default_factory=dict)
    lower_is_better: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scorer:
    """A loaded model with the columns that it reads."""

    columns: set[str]
    score: Callable[[Dataset], Scored]
    purpose: Purpose = "rows"
    numbers: frozenset[str] = frozenset()  # those that may hold numbers, as in `read_rows`


def named(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics named as those of held-out rows."""
    return {f"eval_{name}": value for name, value in metrics.items()}


def evaluation_settings(batch_size: int | None) -> dict[str, Any]:
    """Return the settings of a Trainer that only evaluates, in batches as training's."""
    return {
        "output_dir": tempfile.gettempdir(),  # nothing is written there
        "per_device_eval_batch_size": batch_size or 8,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def predict_held_out(trainer: Trainer, rows: Any) -> tuple[dict[str, float], Any]:
    """Return the Trainer's metrics without its clocks, and the predictions."""
    output = trainer.predict(rows, metric_key_prefix="eval")
    clocks = ("_runtime", "_per_second", "_preparation_time")
    found = output.metrics or {}
    return {k: v for k, v in found.items() if not k.endswith(clocks)}, output.predictions


def group_rows(rows: Dataset, column: str, places: Sequence[int]) -> dict[str, list[int]]:
    """Return the scored rows of each group, by their index, in order of the names.

    Args:
        rows: of the file.
        column: names the group of a row.
        places: of the scored rows in the file.

    Raises:
        ConfigError: there is no such column.
        DataError: a row has no group, or all rows are of one.
    """
    if column not in rows.column_names:
        raise ConfigError(
            f"--group_column {column!r}: no such column, found {', '.join(rows.column_names)}"
        )

    values = rows[column][:]
    empty = [place for place, value in enumerate(values) if _holds_nothing(value)]
    if empty:
        raise DataError(
            f"--group_column {column}: {len(empty)} of {len(values)} rows are of no group, the "
            f"first is row {empty[0] + 1}: name their group, or leave them out"
        )

    groups: dict[str, list[int]] = {}
    for index, place in enumerate(places):
        groups.setdefault(str(values[place]), []).append(index)

    # a group of which no row could be scored would be missing without a word
    if absent := sorted({str(value) for value in values} - set(groups)):
        raise DataError(
            f"--group_column {column}: no row of the group {absent[0]!r} can be scored; see why "
            "rows were left out"
        )
    if len(groups) < 2:
        raise DataError(
            f"--group_column {column}: all rows are of one group, {next(iter(groups))!r}"
        )
    return dict(sorted(groups.items()))


def measure_groups(
    scored: Scored, groups: dict[str, list[int]]
) -> tuple[list[str], list[list[Any]], str]:
    """Return a table of every metric by group, and the name of the worst group.

    Args:
        groups: indices of the scored rows.
    """
    found = {name: scored.measure(indices) for name, indices in groups.items()}
    names = [
        name
        for name in next(iter(found.values()))
        if name not in ("rows", "questions", "pairs", "documents")
    ]
    names.sort(key=lambda name: not name.startswith(scored.main))
    table = [
        [group, len(groups[group]), *(_rounded(one.get(name)) for name in names)]
        for group, one in found.items()
    ]

    sign = 1 if scored.main in scored.lower_is_better else -1
    known = [group for group in found if scored.main in found[group]]
    worst = max(known, key=lambda group: sign * found[group][scored.main])
    return ["group", "rows", *names], table, worst


def _rounded(value: float | None) -> float | str:
    """Return a number for a table; a dash where a group has none."""
    return "–" if value is None or not numpy.isfinite(value) else round(float(value), 6)


def _holds_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def scored_kind(args: ModelConfig, kinds: Collection[ModelKind]) -> ModelKind:
    """Return what a model is, once it is of one of these kinds.

    Raises:
        ConfigError: no model was named.
        CheckpointError: there is no model, or one that another task is for.
    """
    name = require_model_name(args)
    found = identify_model(name, args.model_revision)
    if found.kind in kinds:
        return found.kind
    raise CheckpointError(
        f"{name} is {found}, but {' or '.join(kinds)} is needed here; {USES[found.kind]}"
    )
