"""Compare two models on the same rows: differences, intervals, an exact test.

Both models read the same rows, so what one row makes harder it makes harder for both: the
difference of two scores is known better than either of them. Differences get a paired bootstrap
(Efron and Tibshirani 1993; of corpus scores such as BLEU, Koehn 2004, W04-3250). Shares of right
rows get McNemar's test too, exact, and its mid-p form, whose error rate is nearer to what it says
(Fagerland, Lydersen and Laake 2013).
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray
from scipy.special import bdtr

from hfstack.errors import DataError

Score = Callable[[NDArray[Any]], dict[str, float]]

FEWEST_ROWS = 10


@dataclass(frozen=True)
class Difference:
    """How much more one model scores than another on the same rows."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Return whether the 95 % interval leaves 0 out."""
        return not self.low <= 0 <= self.high


@dataclass(frozen=True)
class ExactTest:
    """McNemar's test on rows that one of two models alone has right."""

    only_first: int
    only_second: int
    p: float
    mid_p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> ExactTest:
    """Return the exact test of whether two models are right equally often.

    Given that models disagree on n rows, each is as likely to be the one that is right there: a
    binomial of n and 1/2 (McNemar 1947). The exact p is cautious; mid-p counts half of the table
    that was seen.

    Args:
        first, second: whether each model is right, row by row.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    total, fewer = only_first + only_second, min(only_first, only_second)
    if not total:
        return ExactTest(0, 0, 1.0, 1.0)

    # scipy.stats would give both, and take half a second of CPU to import
    tail = float(bdtr(fewer, total, 0.5))
    seen = math.comb(total, fewer) / 2**total
    # both tails meet where the models part equally often
    exact = min(1.0, 2 * tail)
    mid = 1.0 if only_first == only_second else 2 * tail - seen
    return ExactTest(only_first, only_second, exact, min(1.0, mid))


def paired_differences(
    first: Score,
    second: Score,
    rows: int,
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Return first - second of each score that both give, with 95 % intervals.

    Both are scored on the same resample each time. Rows of one group, such as questions on one
    text, are drawn together.

    Args:
        first, second: called with indices of rows, some twice, some never.
        rows: how many there are.
        groups: the group of each row; by default each is one.

    Raises:
        DataError: rows, or groups, are too few to resample.
    """
    members = _cluster_members(groups, rows)
    if len(members) < FEWEST_ROWS:
        what = "rows" if groups is None else "groups of rows"
        raise DataError(
            f"{len(members)} {what} are too few for the interval of a difference: give at least "
            f"{FEWEST_ROWS}"
        )

    whole = numpy.arange(rows)
    ours, theirs = first(whole), second(whole)
    names = [name for name in ours if name in theirs]
    generator = numpy.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in names}

    for _ in range(draws):
        picks = generator.integers(0, len(members), len(members))
        index = picks if groups is None else numpy.concatenate([members[pick] for pick in picks])
        one, other = first(index), second(index)
        for name in names:
            # of a resample without one of the classes a score may be missing
            if name in one and name in other and numpy.isfinite(one[name] - other[name]):
                drawn[name].append(one[name] - other[name])

    found: dict[str, Difference] = {}
    for name in names:
        low, high = numpy.percentile(drawn[name], [2.5, 97.5])
        found[name] = Difference(ours[name] - theirs[name], float(low), float(high))
    return found


def _cluster_members(groups: Sequence[Hashable] | None, rows: int) -> Sequence[NDArray[Any]]:
    """Return the rows of each group, in the order in which groups first come."""
    if groups is None:
        return numpy.arange(rows).reshape(-1, 1)  # pyright: ignore[reportReturnType]
    found: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(group, []).append(index)
    return [numpy.array(indices) for indices in found.values()]
