"""Straight lines in log-log: against the published ones, against scipy, and by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hfstack.errors import DataError
from hfstack.scaling.power_laws import best_of_steps, fit_kaplan, fit_power_law, frontier
from hfstack.scaling.rungs import make_rungs

SETTING = ("dataset", "hparams", "warmup", "decay", "param_count", "val")


@pytest.mark.shared
def test_all_published_exponents_of_porian(shared_data: Path) -> None:
    def read(name: str) -> list[dict[str, str]]:
        with (shared_data / "scaling" / name).open() as file:
            return list(csv.DictReader(file))

    optima, published = read("porian_optima.csv"), read("porian_published_fits.csv")
    assert len(published) == 15
    for row in published:
        points = [point for point in optima if all(point[key] == row[key] for key in SETTING)]
        flops, sizes = ([float(point[name]) for point in points] for name in ("C_flop", "N_star"))
        law = fit_power_law(flops, sizes)
        assert law.exponent == pytest.approx(float(row["n_exponent"]), abs=1e-9)
        assert law.coefficient == pytest.approx(float(row["n_coef"]), rel=1e-6)
        assert law.r_squared == pytest.approx(float(row["n_r2"]), abs=1e-9)
        weights = [float(point["N_star_logstd"]) ** -2 for point in points]
        assert fit_power_law(flops, sizes, weights=weights).exponent == pytest.approx(
            float(row["w_n_exponent"]), abs=1e-9
        )


def test_against_scipy() -> None:
    rng = np.random.default_rng(0)
    x = np.geomspace(1e5, 1e9, 9)
    y = 12 * x**-0.07 * np.exp(0.01 * rng.standard_normal(9))
    law, theirs = fit_power_law(x, y), stats.linregress(np.log(x), np.log(y))
    assert law.exponent == pytest.approx(theirs.slope)
    assert law.coefficient == pytest.approx(np.exp(theirs.intercept))
    assert law.r_squared == pytest.approx(theirs.rvalue**2)
    reach = stats.t.ppf(0.975, 7) * theirs.stderr
    assert law.exponent_interval == pytest.approx((theirs.slope - reach, theirs.slope + reach))


def test_by_hand() -> None:
    """8 = 2 * 4^1 and 32 = 2 * 16^1; Kaplan's N_c of L = 2 N^-0.5 is 4, where the law says 1."""
    law = fit_power_law([4, 16], [8, 32])
    assert (law.coefficient, law.exponent) == pytest.approx((2, 1))
    assert law.exponent_interval is None and law.predict_interval(4) is None
    falling = fit_power_law([1, 100], [2, 0.2])
    assert falling.exponent == pytest.approx(-0.5) and falling.scale == pytest.approx(4)
    assert falling.predict(10_000) == pytest.approx(0.02)


def test_prediction_intervals_hold_new_points() -> None:
    rng = np.random.default_rng(1)
    x, hits = np.geomspace(1, 1e3, 6), 0
    for _ in range(200):
        law = fit_power_law(x, 5 * x**-0.1 * np.exp(0.02 * rng.standard_normal(6)))
        new = 5 * 1e4**-0.1 * np.exp(0.02 * rng.standard_normal())
        hits += float(new) in (law.predict_interval(1e4) or ())
    assert 182 <= hits <= 198  # 95 % of 200 is 190, plus or minus 2.6 standard deviations


def test_kaplan_takes_the_best_rung_of_each_step() -> None:
    rungs = make_rungs([1e5, 1e5, 1e6, 1e6], [1e6, 1e7, 1e6, 1e7], [4.0, 3.5, 3.6, 3.0])
    laws = fit_kaplan(rungs).laws
    assert laws["N"].exponent == pytest.approx(np.log10(3.0 / 3.5))
    assert laws["D"].exponent == pytest.approx(np.log10(3.0 / 3.6))
    assert all(law.exponent < 0 for law in laws.values())
    assert best_of_steps(rungs.parameters, rungs.loss) == [1, 3]
    assert frontier(rungs.flops, rungs.loss) == [0, 1, 3]


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="L: 1 rungs at one value"):
        fit_power_law([5], [1], name="L")
    with pytest.raises(DataError, match=r"L\(N\): losses rise with parameters \(exponent \+0"):
        fit_kaplan(make_rungs([1e5, 1e6], [1e6, 1e6], [3.0, 3.5]))
    with pytest.raises(DataError, match="2 rungs at one size"):
        fit_kaplan(make_rungs([1e5, 1e5], [1e6, 1e6], [3.0, 3.5]))


def test_a_direction_in_which_the_other_quantity_binds_is_left_out() -> None:
    """At one compute the largest models see the fewest tokens: their best losses say nothing about
    N.
    """
    sizes = np.array([1e5, 1e6, 1e7] * 2)
    tokens = np.repeat([1e13, 4e13], 3) / sizes
    found = fit_kaplan(make_rungs(sizes, tokens, [3.0, 3.1, 3.6, 2.5, 2.6, 3.1]))
    assert "N" not in found.laws and found.laws["C"].exponent < 0
    assert "L(N): losses rise with parameters" in found.notes[0]
