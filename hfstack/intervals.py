"""Intervals of any score of rows, by drawing the rows again (Efron and Tibshirani 1993, chapter 13)."""

from collections.abc import Callable
from typing import Any

import numpy

from hfstack.errors import DataError


def bootstrap_intervals(
    score: Callable[[numpy.ndarray[Any, Any]], dict[str, float]],
    rows: int,
    *,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the percentile interval of each number that `score` gives for the indices of some rows.

    Args:
        score: called with `rows` indices (some twice, some never) per draw; what is not a number (no such class drawn)
            is left out.

    Raises:
        DataError: there are no rows.
    """
    if rows < 1:
        raise DataError("no rows to draw an interval from")
    generator = numpy.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        for name, value in score(generator.integers(0, rows, rows)).items():
            if numpy.isfinite(value):
                found.setdefault(name, []).append(value)
    tail = 50 * (1 - confidence)
    return {
        name: (float(numpy.percentile(values, tail)), float(numpy.percentile(values, 100 - tail)))
        for name, values in found.items()
    }
