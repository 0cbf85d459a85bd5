"""Compute confidence intervals of shares, of their differences, and of any score."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy
from scipy.special import ndtr, ndtri, stdtrit  # scipy.stats takes half a second to import

from hfstack.errors import DataError


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


def bootstrap_intervals(
    score: Callable[[numpy.ndarray[Any, Any]], dict[str, float]],
    rows: int,
    *,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the percentile bootstrap interval of each number that `score` gives.

    Rows are resampled with replacement (Efron and Tibshirani 1993, chapter 13).

    Args:
        score: called with `rows` indices (some twice, some never) per resample; what is not a
            number (no such class among them) is left out.
        rows: how many there are to resample.
        confidence: of the interval, in (0, 1).
        draws: number of resamples.
        seed: of the resampling.

    Raises:
        DataError: there are no rows.
    """
    if rows < 1:
        raise DataError("no rows to compute an interval from")
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


def wins(margins: Sequence[float]) -> list[float]:
    """Return 1 for a margin above 0, 0 below, and 0.5 for a tie."""
    return [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]


def share_interval(
    shares: Sequence[float], groups: Sequence[Hashable] | None = None, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of the mean of values in [0, 1].

    Pairs that share a prompt are not independent. With `groups`, the number of pairs is divided by
    the design effect: the variance of the mean when whole groups are sampled, over that of single
    pairs, at least 1 (Korn and Graubard, 1998). With every pair a group of its own this is the
    plain interval.

    Args:
        shares: one value in [0, 1] for each pair.
        groups: the group of each pair, such as its prompt.
        confidence: of the interval, in (0, 1).

    Raises:
        DataError: there is nothing to average.
    """
    if not shares:
        raise DataError("no pairs to measure")
    count, mean = len(shares), fmean(shares)

    effect = 1.0
    if groups is not None and 0 < mean < 1:
        deviations: defaultdict[Hashable, float] = defaultdict(float)
        for share, group in zip(shares, groups, strict=True):
            deviations[group] += share - mean
        effect = max(1.0, sum(d * d for d in deviations.values()) / (count * mean * (1 - mean)))

    count /= effect
    z = float(ndtri(0.5 + confidence / 2))
    shrinkage = 1 + z * z / count
    middle = (mean + z * z / (2 * count)) / shrinkage
    deviation = math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    half = z / shrinkage * deviation

    return max(0.0, middle - half), min(1.0, middle + half)


def at_least_wilson(interval: tuple[float, float], share: float, count: int) -> tuple[float, float]:
    """Widen a bootstrap interval to Wilson's where the bootstrap says too little.

    Resamples of rows that are all right are all right: the interval has no width, though the next
    row can be wrong. So where rows are fewer than 30, or fewer than 5 stand on one side, the limits
    are the outer ones of both intervals.

    Args:
        interval: of the resamples.
        share: in [0, 1], such as an accuracy or an F1.
        count: rows that it is a share of.
    """
    low, high = interval
    if count >= 30 and count * min(share, 1 - share) >= 5 and low < high:
        return low, high
    wilson = share_interval([share] * count)
    return min(low, wilson[0]), max(high, wilson[1])


def gain_interval(
    first: Sequence[float], second: Sequence[float], groups: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """Return the 95 % interval of mean(first) - mean(second) on the same pairs.

    Normal approximation, over groups of pairs.

    Raises:
        DataError: there are no pairs.
    """
    if not first:
        raise DataError("no pairs to measure")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = fmean(differences)

    # Without groups each pair is a group of its own.
    sums: defaultdict[Hashable, float] = defaultdict(float)
    for index, difference in enumerate(differences):
        sums[index if groups is None else groups[index]] += difference - mean

    root = math.sqrt(sum(value * value for value in sums.values()))
    half = float(ndtri(0.975)) * root / len(differences)
    return mean - half, mean + half


def expanded_percentiles(
    draws: numpy.ndarray[Any, Any], *, freedom: int, level: float = 0.95
) -> Interval:
    """Return the percentile interval of bootstrap draws, widened for few points.

    Plain percentiles of few points are too narrow: they are moved outwards as Student's t demands
    (Hesterberg 2015, "What teachers should know about the bootstrap", section 3.2). At 235 degrees
    of freedom this is 2.5 % and 97.5 %; at 2 it is the lowest and the highest draw.

    Args:
        draws: (B,), one value of each resample, without NaN.
        freedom: points less fitted parameters, at least 1.
        level: of the interval, in (0, 1).
    """
    tail = float(ndtr(stdtrit(max(1, freedom), (1 - level) / 2)))
    low, high = numpy.quantile(draws, [tail, 1 - tail])
    return Interval(float(low), float(high))
