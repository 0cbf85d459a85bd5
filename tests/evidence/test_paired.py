"""Paired tests: their error rate on models that are equally good, and what they can see."""

import numpy
import pytest
from scipy.stats import binomtest

from hfstack.errors import DataError
from hfstack.evidence.paired import mcnemar, paired_differences

SIMULATIONS, ROWS = 1000, 400


def simulate(seed: int, *, gain: float) -> tuple[list[bool], list[bool]]:
    """Two models that are right on about 0.8 of the rows, more often on the same ones."""
    generator = numpy.random.default_rng(seed)
    hard = generator.normal(size=ROWS)
    first, second = (
        (generator.normal(size=ROWS) + hard < 1.2 + shift).tolist() for shift in (gain, 0.0)
    )
    return first, second


def accuracy_of(right: list[bool]):
    values = numpy.array(right, dtype=float)
    return lambda rows: {"accuracy": float(values[rows].mean())}


def test_mcnemar_is_the_binomial_test_of_the_rows_that_part() -> None:
    first = [True] * 9 + [False] * 2 + [True] * 5
    second = [False] * 9 + [True] * 2 + [True] * 5
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (9, 2)
    assert found.p == pytest.approx(binomtest(2, 11, 0.5).pvalue, abs=1e-12)
    # by hand: P(X <= 2) of 11 is (1 + 11 + 55) / 2048
    assert found.p == pytest.approx(2 * 67 / 2048) and found.mid_p == pytest.approx(79 / 2048)
    assert mcnemar([True, False], [True, False]).p == 1.0
    assert mcnemar([True, False], [False, True]).mid_p == 1.0


def test_equal_models_are_found_different_in_five_of_a_hundred() -> None:
    """Both forms of the test on 1,000 pairs of models of which neither is better."""
    found = [mcnemar(*simulate(seed, gain=0.0)) for seed in range(SIMULATIONS)]
    mid, exact = (
        sum(values) / SIMULATIONS
        for values in zip(*((one.mid_p < 0.05, one.p < 0.05) for one in found), strict=True)
    )
    assert 0.04 <= mid <= 0.06
    assert exact <= mid and exact <= 0.06, "the exact test is the more cautious of the two"


def test_the_interval_of_a_difference_leaves_0_out_in_five_of_a_hundred() -> None:
    """As `paired_differences` draws, in one piece: how often each row is in each resample."""
    generator = numpy.random.default_rng(0)
    drawn = generator.multinomial(ROWS, numpy.full(ROWS, 1 / ROWS), 1000)  # (draws, rows)
    clear = 0
    for seed in range(SIMULATIONS):
        first, second = (numpy.array(side, dtype=float) for side in simulate(seed, gain=0.0))
        low, high = numpy.percentile(drawn @ (first - second) / ROWS, [2.5, 97.5])
        clear += not low <= 0 <= high
    assert 0.04 <= clear / SIMULATIONS <= 0.06


def test_the_interval_is_that_of_the_mean_of_differences() -> None:
    """The bootstrap draws rows of both models together, as one call for all of them does."""
    first, second = simulate(3, gain=0.3)
    found = paired_differences(accuracy_of(first), accuracy_of(second), ROWS, draws=300)["accuracy"]
    gap = numpy.array(first, dtype=float) - numpy.array(second, dtype=float)
    generator = numpy.random.default_rng(0)
    means = [gap[generator.integers(0, ROWS, ROWS)].mean() for _ in range(300)]
    assert found.value == pytest.approx(gap.mean())
    assert (found.low, found.high) == pytest.approx(numpy.percentile(means, [2.5, 97.5]))
    assert found.is_clear and found.low > 0


@pytest.mark.parametrize(("gain", "least", "most"), [(0.2, 0.3, 0.5), (0.4, 0.8, 0.95)])
def test_power_grows_with_the_gain(gain: float, least: float, most: float) -> None:
    """In 400 rows a gain of 4 points (0.2) is seen 4 times of 10, one of 7 points 9 times."""
    seen = sum(mcnemar(*simulate(seed, gain=gain)).mid_p < 0.05 for seed in range(300)) / 300
    assert least <= seen <= most


def test_rows_of_one_text_are_drawn_together() -> None:
    """Rows that are copies of each other say no more than one of them does."""
    first, second = simulate(1, gain=0.2)
    alone = paired_differences(accuracy_of(first), accuracy_of(second), ROWS, draws=300)
    twice = paired_differences(
        accuracy_of(first * 3),
        accuracy_of(second * 3),
        3 * ROWS,
        groups=list(range(ROWS)) * 3,
        draws=300,
    )
    width, together = (one["accuracy"].high - one["accuracy"].low for one in (alone, twice))
    assert together == pytest.approx(width, rel=1e-9)
    with pytest.raises(DataError, match="4 groups of rows are too few for the interval"):
        paired_differences(
            accuracy_of(first), accuracy_of(second), ROWS, groups=[n % 4 for n in range(ROWS)]
        )
    with pytest.raises(DataError, match="9 rows are too few .* give at least 10"):
        paired_differences(accuracy_of(first), accuracy_of(second), 9)
