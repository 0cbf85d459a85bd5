"""Hold the measured points of a ladder, checked once.

These are the parameters, tokens and loss of each finished model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfstack.errors import DataError

FloatArray = NDArray[np.float64]


FLOPS_PER_PARAMETER_TOKEN = 6.0
"""C = 6ND: a multiply and an add a parameter in the forward, twice that in the backward (Kaplan et
al. 2020, 2.1)."""
_SAME_RUNG_RATIO = 1.05  # sizes or token counts within 5 % are one step of a ladder


@dataclass(frozen=True)
class Rungs:
    """R finished models; every array is (R,)."""

    parameters: FloatArray
    tokens: FloatArray
    loss: FloatArray
    """Nats per token, or any positive loss of one unit."""
    flops: FloatArray
    """Training compute; 6ND where it was not counted."""
    unique_tokens: FloatArray
    """Tokens of the training set; equal to `tokens` or more where none was seen twice."""

    def __len__(self) -> int:
        return len(self.parameters)

    def select(self, rows: Any) -> "Rungs":
        """Return some of the rungs, by a mask or by numbers."""
        return Rungs(
            self.parameters[rows],
            self.tokens[rows],
            self.loss[rows],
            self.flops[rows],
            self.unique_tokens[rows],
        )

    @property
    def epochs(self) -> FloatArray:
        """Return how often each training token was seen on average, at least 1."""
        return np.maximum(1.0, self.tokens / self.unique_tokens)


def make_rungs(
    parameters: Any,
    tokens: Any,
    loss: Any,
    *,
    flops: Any | None = None,
    unique_tokens: Any | None = None,
) -> Rungs:
    """Return checked rungs from plain sequences of numbers.

    Raises:
        DataError: the sequences differ in length, are empty, or hold a value that is not a positive
            finite number.
    """
    columns = {"parameters": parameters, "tokens": tokens, "loss": loss}
    if flops is not None:
        columns["flops"] = flops
    if unique_tokens is not None:
        columns["unique_tokens"] = unique_tokens
    arrays = {name: np.asarray(values, dtype=float).reshape(-1) for name, values in columns.items()}

    sizes = {len(values) for values in arrays.values()}
    if len(sizes) != 1 or 0 in sizes:
        counts = ", ".join(f"{len(values)} {name}" for name, values in arrays.items())
        raise DataError(f"a ladder needs one value of each for every rung, got {counts}")

    for name, values in arrays.items():
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise DataError(
                f"rung {bad[0] + 1}: {name} is {values[bad[0]]:g}: it must be a positive finite "
                "number"
            )

    product = FLOPS_PER_PARAMETER_TOKEN * arrays["parameters"] * arrays["tokens"]
    return Rungs(
        arrays["parameters"],
        arrays["tokens"],
        arrays["loss"],
        arrays.get("flops", product),
        arrays.get("unique_tokens", arrays["tokens"]),
    )


def rungs_from_rows(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, place: str
) -> Rungs:
    """Return the rungs of a table.

    Args:
        rows: one mapping a rung.
        columns: `parameters`, `tokens`, `loss`, and maybe `flops` and `unique_tokens`, each with
            its column's name.
        place: where the rows are from, for messages.

    Raises:
        DataError: a column is missing, or a cell is not a positive finite number.
    """
    found = list(rows[0]) if rows else []
    missing = [column for column in columns.values() if column not in found]
    if missing:
        raise DataError(
            f"{place} has no column {', '.join(map(repr, missing))}; found: "
            f"{', '.join(found) or 'no rows'}; name the columns with --parameters_column, "
            "--tokens_column, --loss_column"
        )

    values: dict[str, list[float]] = {name: [] for name in columns}
    for number, row in enumerate(rows, start=1):
        for name, column in columns.items():
            values[name].append(
                _read_positive(row[column], f"{place}, row {number}, column {column!r}")
            )
    return make_rungs(
        values["parameters"],
        values["tokens"],
        values["loss"],
        flops=values.get("flops"),
        unique_tokens=values.get("unique_tokens"),
    )


def count_steps(values: FloatArray) -> int:
    """Count the steps of a ladder in one direction.

    Values within 5 % of each other are one step.
    """
    return len(step_starts(values))


def step_starts(values: FloatArray) -> list[float]:
    """Return the smallest value of each step, in rising order."""
    starts: list[float] = []
    for value in np.sort(values):
        if not starts or value > starts[-1] * _SAME_RUNG_RATIO:
            starts.append(float(value))
    return starts


def split_largest(rungs: Rungs) -> tuple[Rungs, Rungs]:
    """Return the rungs below the largest compute, and those at it (within 10 %)."""
    largest = rungs.flops >= rungs.flops.max() / 1.1
    return rungs.select(~largest), rungs.select(largest)


def refuse_rising(rungs: Rungs) -> None:
    """Refuse losses that rise with parameters or tokens: no scaling law does.

    Judged by the slopes of log loss over log parameters and log tokens together; of one alone where
    the other does not vary, or rises in step with it. Where tokens fall as parameters rise (one
    compute), a rising loss is no mistake.

    Raises:
        DataError: a slope is positive, by more than twice its standard error where one can be
            known.
    """
    x = np.column_stack([np.log(rungs.parameters), np.log(rungs.tokens)])
    varied = [
        i for i, values in enumerate((rungs.parameters, rungs.tokens)) if count_steps(values) > 1
    ]
    if len(varied) == 2 and collinearity(rungs) > 0.99:
        varied = [0] if np.corrcoef(x.T)[0, 1] > 0 else []

    for column, slope, error in _fit_slopes(x[:, varied], np.log(rungs.loss)):
        if slope > 2 * error:
            what = ("parameters", "tokens")[varied[column]]
            raise DataError(
                f"losses rise with the number of {what} (log-log slope {slope:+.3f} over "
                f"{len(rungs)} rungs): every scaling law falls; check the columns, and whether the "
                "larger models were trained to the end"
            )


def collinearity(rungs: Rungs) -> float:
    """Return the correlation, 0 to 1, of log parameters and log tokens.

    It is 0 where one of them does not vary.
    """
    x, y = np.log(rungs.parameters), np.log(rungs.tokens)
    if np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9:
        return 0.0
    return float(abs(np.corrcoef(x, y)[0, 1]))


def _fit_slopes(x: FloatArray, y: FloatArray) -> list[tuple[int, float, float]]:
    """Return (column, slope, standard error) of a least-squares plane.

    The error is 0 where no rung is left to judge by.
    """
    if not x.shape[1] or len(y) <= x.shape[1]:
        return []
    design = np.column_stack([np.ones(len(y)), x])
    solution, _, _, _ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(y) - design.shape[1]
    variance = float(((y - design @ solution) ** 2).sum() / freedom) if freedom > 0 else 0.0
    errors = np.sqrt(np.maximum(0, variance * np.diag(np.linalg.pinv(design.T @ design))))
    return [(i, float(solution[i + 1]), float(errors[i + 1])) for i in range(x.shape[1])]


def _read_positive(cell: Any, place: str) -> float:
    """Return a cell as a positive finite number."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or value <= 0 or isinstance(cell, bool):
        raise DataError(f"{place}: {cell!r} is not a positive number; fix it or leave the row out")
    return value
