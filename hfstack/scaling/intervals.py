"""Intervals from bootstrap draws, widened for few rungs."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


def expanded_percentiles(draws: Array, *, freedom: int, level: float = 0.95) -> Interval:
    """Return the percentile interval of bootstrap draws, with the percentiles moved out as Student's t demands.

    Plain percentiles of few points are too narrow (Hesterberg 2015, "What teachers should know about the bootstrap",
    section 3.2). At 235 degrees of freedom this is 2.5 % and 97.5 %; at 2 it is the lowest and the highest draw.

    Args:
        draws: (B,), without NaN.
        freedom: points less fitted parameters, at least 1.
        level: of the interval.
    """
    tail = float(stats.norm.cdf(stats.t.ppf((1 - level) / 2, max(1, freedom))))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(low), float(high))
