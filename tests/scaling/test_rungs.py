"""What a ladder's table must be, and how its steps are counted."""

import numpy as np
import pytest

from hfstack.errors import DataError
from hfstack.scaling.rungs import (
    collinearity,
    count_steps,
    make_rungs,
    refuse_rising,
    rungs_from_rows,
    split_largest,
)

COLUMNS = {"parameters": "N", "tokens": "D", "loss": "loss"}


def test_a_table() -> None:
    rungs = rungs_from_rows(
        [{"N": "1e6", "D": 2e7, "loss": 3}, {"N": 2e6, "D": 2e7, "loss": "2.5"}], COLUMNS, place="x"
    )
    np.testing.assert_array_equal(rungs.flops, [6 * 1e6 * 2e7, 6 * 2e6 * 2e7])
    np.testing.assert_array_equal(rungs.epochs, [1, 1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"N": 1, "tokens": 2, "loss": 3}],
            "t.csv has no column 'D'; found: N, tokens, loss; name the columns with",
        ),
        (
            [{"N": 1, "D": 2, "loss": 3}, {"N": 1, "D": "", "loss": 3}],
            "t.csv, row 2, column 'D': '' is not a positive",
        ),
        (
            [{"N": 1, "D": 2, "loss": -1}],
            "t.csv, row 1, column 'loss': -1 is not a positive number",
        ),
        ([{"N": 1, "D": 2, "loss": "nan"}], "'nan' is not a positive number"),
        ([], "t.csv has no column 'N', 'D', 'loss'; found: no rows"),
    ],
)
def test_a_table_that_cannot_be_used(rows, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rungs_from_rows(rows, COLUMNS, place="t.csv")


def test_sequences_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="got 2 parameters, 1 tokens, 2 loss"):
        make_rungs([1, 2], [1], [1, 2])
    with pytest.raises(DataError, match="rung 2: loss is nan"):
        make_rungs([1, 2], [1, 2], [1, float("nan")])


def test_steps() -> None:
    assert count_steps(np.array([1.0, 1.04, 2.0, 2.05, 9.0])) == 3
    small, large = split_largest(make_rungs([1, 2, 3, 3], [10, 10, 10, 9.5], [4, 3, 2, 2]))
    assert (len(small), len(large)) == (2, 2)


def test_collinearity() -> None:
    sizes = np.geomspace(1e5, 1e7, 5)
    assert collinearity(make_rungs(sizes, 20 * sizes, np.ones(5))) == pytest.approx(1)
    assert collinearity(make_rungs(sizes, np.full(5, 1e6), np.ones(5))) == 0


def test_rising_losses() -> None:
    sizes = np.geomspace(1e5, 1e7, 5)
    refuse_rising(make_rungs(sizes, 20 * sizes, sizes**-0.1))
    with pytest.raises(DataError, match="losses rise with the number of parameters"):
        refuse_rising(make_rungs(sizes, 20 * sizes, sizes**0.1))
    with pytest.raises(DataError, match="losses rise with the number of tokens"):
        refuse_rising(make_rungs(np.full(5, 1e6), sizes, sizes**0.1))
    # an IsoFLOP curve rises beyond its minimum: that is the tokens' doing
    refuse_rising(make_rungs([1e5, 1e6, 1e7], [1e8, 1e7, 1e6], [3.0, 2.8, 3.5]))
    refuse_rising(make_rungs([1e5, 1e6, 1e7], [1e8, 1e7, 1e6], [3.0, 3.2, 3.5]))
