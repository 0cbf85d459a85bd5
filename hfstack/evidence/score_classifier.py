"""Score a finished classifier on labelled rows by the functions of its training."""

from collections.abc import Sequence
from typing import Any

import numpy
from accelerate import Accelerator
from datasets import ClassLabel, Dataset
from trl import ModelConfig

from hfstack.errors import CheckpointError, DataError
from hfstack.evidence.scored import ScoreArgs, Scored, Scorer, named
from hfstack.models.context import context_length
from hfstack.models.heads import padding_id
from hfstack.tasks.classification.data import LabelledRows, encode_split
from hfstack.tasks.classification.label_columns import read_label_columns
from hfstack.tasks.classification.labels import LabelKind, LabelSet, given_values
from hfstack.tasks.classification.metrics import (
    NUMBER,
    SEVERAL,
    measure,
    per_class_table,
    predicted,
    scores,
    worst_mistakes,
)
from hfstack.tasks.classification.model import ClassifierInfo, load_trained_classifier
from hfstack.tasks.classification.predict import answers_of_row, classify_logits
from hfstack.tasks.classification.report import name_positive_class, true_answer
from hfstack.tokens.text_rows import choose_max_length

_KINDS: dict[str, LabelKind] = {NUMBER: "regression", SEVERAL: "multi_label"}


def load_classifier_scorer(args: ModelConfig, how: ScoreArgs) -> Scorer:
    """Load a finished classifier or regression.

    Raises:
        CheckpointError: there is no whole one, or it does not name its labels.
    """
    model, tokenizer, info = load_trained_classifier(args)
    model.to(Accelerator().device)  # pyright: ignore[reportArgumentType]
    if info.problem_type != NUMBER and not info.names:
        raise CheckpointError(f"{args.model_name_or_path} names no labels in its config.json")

    limit = choose_max_length(
        how.max_length or info.max_length, context_length(model.config), tokenizer.model_max_length
    )
    columns = (
        how.text_column or info.text_column,
        how.text_pair_column or info.text_pair_column,
    )
    label_columns = how.label_column or ["label"]

    def score(rows: Dataset) -> Scored:
        labelled = _read_labels(rows, columns, label_columns, info, how)
        encoded = encode_split(
            labelled,
            "eval",
            tokenizer,
            max_length=limit,
            overlong="truncate",
            skip_empty=how.on_bad_row != "fail",
        )
        batch = {} if how.batch_size is None else {"batch_size": how.batch_size}
        logits = classify_logits(
            model, encoded.rows.to_list(), pad_token_id=padding_id(tokenizer), **batch
        )
        targets = numpy.asarray(encoded.targets)
        return _labels_as_scored(logits, targets, encoded.texts, encoded.places, info)

    read = {name for name in (*columns, *label_columns) if name is not None}
    return Scorer(read, score, numbers=frozenset(label_columns))


def _read_labels(
    rows: Dataset,
    columns: tuple[str, str | None],
    label_columns: Sequence[str],
    info: ClassifierInfo,
    how: ScoreArgs,
) -> LabelledRows:
    """Return the rows with what their labels mean, which the model decides."""
    kind = _KINDS.get(info.problem_type, "single_label")
    if absent := [c for c in (*columns, *label_columns) if c and c not in rows.column_names]:
        raise DataError(
            f"no column {absent[0]!r}, found {', '.join(rows.column_names)}; set --text_column, "
            "--text_pair_column or --label_column"
        )

    read, column, _ = read_label_columns({"eval": rows}, label_columns, kind=kind, given=info.names)
    labels = LabelSet(kind)
    if kind != "regression":
        labels = LabelSet(kind, tuple(info.names), _values(read["eval"], column, info.names))
    return LabelledRows(read, {}, labels, columns, column, None, how.datasets)


def _values(rows: Dataset, column: str, names: Sequence[str]) -> tuple[Any, ...]:
    """Return what the label column holds for each of the model's labels."""
    feature: Any = rows.features[column]
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, ClassLabel):
        # by name: the data may have them in another order than the model
        own = {name: index for index, name in enumerate(feature.names)}
        return tuple(own.get(name, name) for name in names)

    first = next((value for value in rows[column] if value not in (None, [])), None)
    first = first[0] if isinstance(first, list) else first
    return given_values(names, whole=type(first) is int)


def _labels_as_scored(
    logits: numpy.ndarray[Any, Any],
    targets: numpy.ndarray[Any, Any],
    texts: Sequence[str],
    places: list[int],
    info: ClassifierInfo,
) -> Scored:
    said = predicted(logits, info.problem_type)
    # of the temperature that is saved with the model, which has not seen these rows
    saved = info.temperature != 1.0 and info.problem_type != NUMBER
    temperature = numpy.full((len(targets), 1), info.temperature) if saved else None

    def measure_rows(indices: Sequence[int]) -> dict[str, float]:
        index = numpy.asarray(indices)
        scale: Any = 1.0 if temperature is None else temperature[index]
        found = measure(logits[index], targets[index], info.problem_type, temperature=scale)
        return name_positive_class(found, info.names)

    def resample(index: numpy.ndarray[Any, Any]) -> dict[str, float]:
        return scores(said[index], targets[index], info.problem_type, logits.shape[1])

    # a table is one of the run's, so it is made here, where the logits are
    tables = {
        "eval most confident mistakes": worst_mistakes(
            texts, logits / info.temperature, targets, info.problem_type, names=info.names
        )
    }
    right = None
    if info.problem_type != NUMBER:
        tables["eval classes"] = per_class_table(said, targets, info.problem_type, info.names)
        same = said == targets
        right = (same.all(axis=1) if same.ndim > 1 else same).tolist()

    answers = [
        {"text": text, "true": true_answer(target, info), **answer}
        for text, target, answer in zip(
            texts, targets.tolist(), answers_of_row(logits, info), strict=True
        )
    ]
    return Scored(
        metrics=named(measure_rows(range(len(targets)))),
        main="pearson" if info.problem_type == NUMBER else "accuracy",
        places=places,
        answers=answers,
        measure=measure_rows,
        resample=resample,
        right=right,
        tables=tables,
        lower_is_better=frozenset({"mean_squared_error", "mean_absolute_error"}),
    )
