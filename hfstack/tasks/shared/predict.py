"""Predict the rows of a file in order, in constant memory, resuming where stopped.

A task is one function that loads the model and returns a `Predictor`: rows in, as many rows of
answers out. The recipe `predict` has the table of tasks, by the model's architecture.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.models.contents import USES, Kind, identify_model
from hfstack.runs.rendering import read_rendering

logger = get_logger(__name__)

Predictor = Callable[[Sequence[dict[str, Any]], int], list[dict[str, Any]]]
"""Takes some rows of the file and the number of the first, from 1; returns the answer to each, in
order.

A row that cannot be read is a DataError with its number in the file, also when an interrupted call
wrote those before. """


def task_of(args: ModelConfig, tasks: Collection[Kind]) -> Kind:
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
        DataError: the file cannot be written, a kept column is missing, or there are fewer rows
            than were written.
    """
    # What was begun with another model or other data is of no use to anybody.
    digest = hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()
    begun = path.with_name(f".{path.name}.{digest}")
    for other in path.parent.glob(f".{path.name}.*"):
        if other != begun:
            other.unlink()

    done = _whole_lines(begun)
    if done:
        logger.info("%s: going on after %d rows", path, done)

    stream = iter(rows)
    if sum(1 for _ in islice(stream, done)) < done:
        raise DataError(f"{begun} has {done} predictions, more than there are rows; remove it")
    total = done

    try:
        with begun.open("a", encoding="utf-8", newline="\n") as file:
            while window := list(islice(stream, window_rows)):
                for row, answer in zip(window, predict(window, total + 1), strict=True):
                    absent = [name for name in keep if name not in row]
                    if absent:
                        raise DataError(
                            f"--keep_columns {absent[0]}: row {total + 1} has {', '.join(row)}"
                        )
                    line = {name: row[name] for name in keep} | answer
                    file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
                    total += 1

                # on the disk a window at a time: an interruption costs no more than one
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None

    begun.replace(path)
    return total


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
