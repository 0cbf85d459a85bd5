"""Check whether probabilities mean what they say, and fit one temperature.

Calibration error and reliability.

Legend: N rows, C classes. For several labels a row every label is a question of its own, yes or no.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from hfstack.errors import DataError

Array = numpy.ndarray[Any, Any]

_COLDEST, _HOTTEST = 0.25, 10.0
FEW_ROWS = 20
FEW_MISTAKES = 10


def probabilities(logits: Array, problem_type: str, temperature: float | Array = 1.0) -> Array:
    """Return probabilities (N, C) of logits (N, C) over a temperature.

    Softmax, or a sigmoid for several labels.
    """
    scaled = numpy.asarray(logits, dtype=numpy.float64) / temperature
    return (
        expit(scaled) if problem_type == "multi_label_classification" else softmax(scaled, axis=1)
    )


def log_loss(
    logits: Array, targets: Array, problem_type: str, temperature: float | Array = 1.0
) -> float:
    """Return the mean negative log likelihood in nats a row, or a label if several."""
    scaled = numpy.asarray(logits, dtype=numpy.float64) / temperature
    if problem_type == "multi_label_classification":
        return float(-numpy.mean(targets * log_expit(scaled) + (1 - targets) * log_expit(-scaled)))
    return float(
        -numpy.mean(log_softmax(scaled, axis=1)[numpy.arange(len(scaled)), targets.astype(int)])
    )


def fit_temperature(
    logits: Array,
    targets: Array,
    problem_type: str,
    *,
    fewest_rows: int = FEW_ROWS,
    fewest_mistakes: int = FEW_MISTAKES,
) -> float:
    """Return the temperature in [0.25, 10] with the least log loss, shrunk towards 1.

    Guo et al. 2017, arXiv:1706.04599, section 4.2, with a prior: its logarithm is normal with
    standard deviation 1, so that it moves as far from 1 as the rows show and no further.

    It does not change which label is the first. Fit it on rows that were not trained on; it is then
    optimistic by one parameter for those same rows.

    Args:
        logits: (N, C).
        targets: (N), or (N, C) of several labels.
        problem_type: as transformers calls it.
        fewest_rows: below which nothing is fitted.
        fewest_mistakes: below which nothing is fitted, nor with fewer right decisions. Where all is
            right, any smaller temperature has a smaller loss: it would say 0.9999 of nonsense.

    Raises:
        DataError: rows, mistakes or right decisions are too few; it says why no temperature is
            fitted.
    """
    if not len(logits):
        raise DataError("no rows to fit a temperature on")
    if len(logits) < fewest_rows:
        raise DataError(f"{len(logits)} held-out rows are fewer than {fewest_rows}")

    _, right = confidences(probabilities(logits, problem_type), targets, problem_type)
    mistakes = len(right) - int(right.sum())
    if min(mistakes, len(right) - mistakes) < fewest_mistakes:
        raise DataError(
            f"of {len(right)} held-out decisions {mistakes} are mistakes; how sure a model may be "
            f"shows only where at least {fewest_mistakes} are, and as many are right"
        )

    def loss(log_t: float) -> float:
        heat = float(numpy.exp(log_t))
        return log_loss(logits, targets, problem_type, heat) + log_t**2 / 2 / len(right)

    found = minimize_scalar(
        loss,
        bounds=(numpy.log(_COLDEST), numpy.log(_HOTTEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )

    return float(numpy.exp(found.x))


def confidences(probability: Array, targets: Array, problem_type: str) -> tuple[Array, Array]:
    """Return confidences, and whether each is right (1 or 0), both (N) or (N * C)."""
    if problem_type == "multi_label_classification":
        said = probability >= 0.5
        return numpy.where(said, probability, 1 - probability).ravel(), (
            said == (targets >= 0.5)
        ).ravel().astype(float)
    first = probability.argmax(axis=1)
    return probability.max(axis=1), (first == targets).astype(float)


def reliability_bins(confidence: Array, right: Array, *, bins: int = 15) -> list[list[float]]:
    """Return [mean confidence, accuracy, rows] in equally wide bins of (0, 1].

    Empty bins are left out.
    """
    index = numpy.clip(numpy.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = []

    for number in range(bins):
        inside = index == number
        if inside.any():
            rows.append(
                [float(confidence[inside].mean()), float(right[inside].mean()), int(inside.sum())]
            )

    return rows


def calibration_error(bins: Sequence[Sequence[float]]) -> float:
    """Return the expected calibration error.

    The mean gap of confidence and accuracy, weighted by the rows of a bin.
    """
    total = sum(row[2] for row in bins)
    if not total:
        raise DataError("no rows to measure calibration on")
    return sum(row[2] * abs(row[0] - row[1]) for row in bins) / total


def cross_fitted_temperatures(
    logits: Array, targets: Array, problem_type: str, *, seed: int = 0
) -> Array:
    """Return temperatures (N, 1), each fitted on the other half of the rows.

    The halves are sampled by `seed`.

    So the calibration of held-out rows is measured with a temperature that has not seen them. A
    half with less than a fifth of the mistakes that a temperature takes leaves the other at 1.
    """
    side = numpy.random.default_rng(seed).permutation(len(logits)) % 2
    found = numpy.ones((len(logits), 1))
    for half in (0, 1):
        if (side != half).any():
            with suppress(DataError):
                found[side == half] = fit_temperature(
                    logits[side != half],
                    targets[side != half],
                    problem_type,
                    fewest_rows=1,
                    fewest_mistakes=FEW_MISTAKES // 5,
                )
    return found
