"""Predict the rows of a file in order, in constant memory, resuming where stopped.

A task is one function that loads the model and returns a `Predictor`: rows in, as many rows of
answers out. The recipe `predict` has the table of tasks, by the model's architecture.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from trl import ModelConfig

from hfstack.data.reading.bad_rows import UnreadRow
from hfstack.disk import atomic_write, hash_text, put_in_place
from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.logs import NOTICE, get_logger
from hfstack.models.contents import USES, ModelKind, identify_model
from hfstack.runs.rendering import read_rendering

logger = get_logger(__name__)

Predictor = Callable[[Sequence[dict[str, Any]], int], list[dict[str, Any]]]
"""Takes some rows of the file and the number of the first, from 1; returns the answer to each, in
order.

A row that has no answer gets `{"problem": why}`. A column that the first row lacks is a DataError.
"""

FindProblem = Callable[[dict[str, Any]], str | None]
"""Says what is wrong with a row, or None; a DataError where it lacks a column."""

NO_ANSWER = "problem"


def task_of(args: ModelConfig, tasks: Collection[ModelKind]) -> ModelKind:
    """Return which of `tasks` a model was trained for.

    Raises:
        ConfigError: no model was named.
        CheckpointError: there is no model, or it was trained for none of them.
    """
    name = args.model_name_or_path
    if name is None:
        raise ConfigError(
            "--model_name_or_path is required: the output directory of a run, or a Hub id"
        )

    found = identify_model(name, args.model_revision)
    if found.kind == "reward model" and (known := read_rendering(name)) is not None:
        raise CheckpointError(
            f"{name} is {found} of prompts with answers ({known[1]}), which predict does not read; "
            f"{USES[found.kind]}"
        )
    if found.kind in tasks:
        return found.kind
    raise CheckpointError(
        f"{name} is {found}, but predict needs one of: {', '.join(tasks)}; {USES[found.kind]}"
    )


def problem_of_texts(columns: Sequence[str], flags: str) -> FindProblem:
    """Return what finds rows without a text in these columns.

    Args:
        flags: that choose other columns, for the message.
    """

    def problem_of(row: dict[str, Any]) -> str | None:
        for column in columns:
            if column not in row:
                raise DataError(f"has no column {column!r}, found {', '.join(row)}; set {flags}")
            if problem := problem_of_text(row[column], column):
                return problem
        return None

    return problem_of


def problem_of_text(value: Any, column: str) -> str | None:
    """Return why a value is no text to predict, or None."""
    if value is None:
        return f"{column} is null"
    if not isinstance(value, str):
        return f"{column} is {str(value)[:40]!r}, not text"
    return None if value.strip() else f"{column} is empty"


def answer_usable(predict: Predictor, problem_of: FindProblem) -> Predictor:
    """Return a predictor that says of rows it cannot use why, and answers others.

    Raises:
        DataError: the first row lacks a column; that of a later row is its problem.
    """

    def answer(rows: Sequence[dict[str, Any]], first_row: int = 1) -> list[dict[str, Any]]:
        problems: list[str | None] = []
        for number, row in enumerate(rows, first_row):
            try:
                problems.append(problem_of(row))
            except DataError as error:
                if number == 1:
                    raise DataError(f"row 1 {error}") from None
                problems.append(str(error))

        usable = [row for row, problem in zip(rows, problems, strict=True) if problem is None]
        answers = iter(predict(usable, first_row) if usable else [])
        return [next(answers) if problem is None else {NO_ANSWER: problem} for problem in problems]

    return answer


def write_predictions(
    rows: Iterable[dict[str, Any]],
    predict: Predictor,
    path: Path,
    *,
    identity: str,
    keep: Sequence[str] = (),
    window_rows: int = 1024,
) -> int:
    """Write one line for each row to `path`, which is there when all of them are.

    Return their number.

    What has been written before an interruption is kept in a hidden file beside it and not
    predicted again, when `identity` is the same.

    Args:
        identity: what the predictions depend on: the content of model and data, and the settings.
        keep: columns of the rows that are repeated in the lines.
        window_rows: rows that are in memory at once; a predictor may order them by length.

    Raises:
        DataError: the file cannot be written, a kept column is missing, no row has an answer, or
            there are fewer rows than were written.
    """
    # What was begun with another model or other data is of no use to anybody.
    begun = path.with_name(f".{path.name}.{hash_text(identity)[:12]}")
    for other in path.parent.glob(f".{path.name}.*"):
        if other != begun:
            other.unlink()

    done = _whole_lines(begun)
    if done:
        logger.log(NOTICE, "%s: continuing after %d rows", path, done)

    stream = iter(rows)
    if sum(1 for _ in islice(stream, done)) < done:
        raise DataError(f"{begun} has {done} predictions, more than there are rows; remove it")
    total, answered = done, bool(done)

    try:
        with begun.open("a", encoding="utf-8", newline="\n") as file:
            while window := list(islice(stream, window_rows)):
                answers = _answers_of(window, predict, total + 1)
                answered = answered or any(NO_ANSWER not in answer for answer in answers)
                for row, answer in zip(window, answers, strict=True):
                    absent = [name for name in keep if name not in row]
                    if absent and not isinstance(row, UnreadRow):
                        raise DataError(
                            f"--keep_columns {absent[0]}: row {total + 1} has {', '.join(row)}"
                        )
                    line = {name: row.get(name) for name in keep} | answer
                    file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
                    total += 1

                # on the disk a window at a time: an interruption costs no more than one
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None

    if total and not answered:
        first = json.loads(begun.read_text(encoding="utf-8").partition("\n")[0])
        begun.unlink()
        raise DataError(f"none of the {total} rows has an answer; the first: {first[NO_ANSWER]}")
    put_in_place(begun, path)
    return total


def _answers_of(
    window: Sequence[dict[str, Any]], predict: Predictor, first_row: int
) -> list[dict[str, Any]]:
    """Return an answer to each row, with nulls where there is none."""
    known = [row for row in window if not isinstance(row, UnreadRow)]
    answers = iter(predict(known, first_row) if known else [])
    found = [
        {NO_ANSWER: row.problem} if isinstance(row, UnreadRow) else next(answers) for row in window
    ]

    keys = next((answer.keys() for answer in found if NO_ANSWER not in answer), ())
    return [dict.fromkeys(keys) | answer if NO_ANSWER in answer else answer for answer in found]


def count_predictions(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Return how many lines have each label, and each problem."""
    labels: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    for line in _lines(path):
        problems.update([line[NO_ANSWER]] if NO_ANSWER in line else [])
        found = line.get("labels", line.get("label"))
        labels.update(found if isinstance(found, list) else [found] if found is not None else [])
    return labels, problems


def write_csv(path: Path) -> Path:
    """Write a file of predictions as a table beside it; return its path.

    The parts of an object are columns as `probabilities.positive`; lists are JSON text.
    """
    columns = dict.fromkeys(name for line in _lines(path) for name in _flat(line))
    table = path.with_suffix(".csv")
    with atomic_write(table) as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(_flat, _lines(path)))
    return table


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line with the parts of its objects beside each other."""
    cells: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, dict):
            cells |= {f"{name}.{key}": part for key, part in _flat(value).items()}
        else:
            is_list = isinstance(value, list)
            cells[name] = json.dumps(value, ensure_ascii=False) if is_list else value
    return cells


def by_length(
    rows: Sequence[Any], lengths: Sequence[int], score: Callable[[list[Any]], list[Any]], size: int
) -> list:
    """Return `score` of the rows, in order, computed in batches of about one length.

    At most `size` rows a batch, longest first.
    """
    order = sorted(range(len(rows)), key=lambda index: -lengths[index])
    found: list[Any] = [None] * len(rows)
    for first in range(0, len(order), size):
        batch = order[first : first + size]
        for index, answer in zip(batch, score([rows[index] for index in batch]), strict=True):
            found[index] = answer
    return found


def _whole_lines(path: Path) -> int:
    """Count the whole lines of a file, and remove a last one that is incomplete."""
    if not path.is_file():
        return 0
    count = end = 0

    with path.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            count, end = count + 1, end + len(line)
        file.truncate(end)

    return count
