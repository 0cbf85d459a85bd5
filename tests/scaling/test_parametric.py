"""Chinchilla's third approach: the published table, known laws recovered, and data that cannot
tell.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from hfstack.errors import DataError
from hfstack.reporting.scaling.pictures import pictures_of
from hfstack.scaling.fit import fit_ladder
from hfstack.scaling.parametric import PARAMETERS, Law, fit_parametric, huber, predict_logs
from hfstack.scaling.rungs import Rungs, make_rungs

TRUE = Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


def synthetic(law: Law, sizes: np.ndarray, tokens: np.ndarray, *, noise: float, seed: int) -> Rungs:
    """Every size with every number of tokens, with log-normal noise on the loss."""
    n, d = (grid.ravel() for grid in np.meshgrid(sizes, tokens))
    loss = np.array([law.loss(*point) for point in zip(n, d, strict=True)])
    return make_rungs(
        n, d, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))
    )


def ladder(seed: int, noise: float = 0.005) -> Rungs:
    return synthetic(
        TRUE, np.geomspace(5e7, 1e10, 5), np.geomspace(1e9, 5e11, 4), noise=noise, seed=seed
    )


@pytest.fixture(scope="module")
def chinchilla(shared_data: Path) -> Rungs:
    with (shared_data / "scaling" / "chinchilla_epoch_extracted.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["excluded_in_paper"] == "0"]
    return make_rungs(*([row[name] for row in rows] for name in ("N_params", "D_tokens", "loss")))


@pytest.mark.shared
def test_the_published_table(chinchilla: Rungs, shared_data: Path) -> None:
    published = json.loads((shared_data / "scaling" / "published_fits.json").read_text())[
        "plain_huber_optimum"
    ]
    fit = fit_parametric(chinchilla, draws=200)
    assert len(chinchilla) == 240
    for name in ("E", "alpha", "beta"):
        assert getattr(fit.law, name) == pytest.approx(published[name], abs=5e-5)
    for name in ("A", "B"):
        assert getattr(fit.law, name) == pytest.approx(published[name], rel=1e-4)
    assert fit.objective == pytest.approx(published["objective_sum"], rel=1e-6)
    # Besiroglu et al. 2024 print standard errors of 0.026, 0.015 and 0.021 from 4,000 draws; an
    # interval is 3.9 wide
    for name, error in {"E": 0.02566, "alpha": 0.0154, "beta": 0.0206}.items():
        assert (fit.intervals[name].high - fit.intervals[name].low) / 3.92 == pytest.approx(
            error, rel=0.25
        )
    assert fit.notes == ()


@pytest.mark.shared
@pytest.mark.parametrize(
    ("train_set", "bound"), [("rpj", 0.012), ("rw_original", 0.02), ("c4_original", 0.04)]
)
def test_held_out_models_of_gadre(train_set: str, bound: float, shared_data: Path) -> None:
    """Models of up to 5e20 FLOPs predict those of 1e21 to 8e21, on C4: the error stated in
    docs/scaling.md.
    """
    with (shared_data / "scaling" / "gadre_open_lm.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train_set"] == train_set]
    small = [row for row in rows if float(row["C_flop_6ND"]) < 5e20]
    large = [row for row in rows if float(row["C_flop_6ND"]) >= 1e21]
    fit = fit_parametric(
        make_rungs(
            *([row[name] for row in small] for name in ("N_params", "D_tokens", "loss_c4_val"))
        ),
        draws=100,
    )
    assert large and len(small) == 32
    for row in large:
        point = float(row["N_params"]), float(row["D_tokens"])
        measured = float(row["loss_c4_val"])
        assert abs(fit.law.loss(*point) / measured - 1) < bound
        assert measured in (fit.predict_interval(*point) or ())


def test_a_law_without_noise_comes_back() -> None:
    fit = fit_parametric(ladder(0, noise=0.0), draws=0)
    for name, value in TRUE.values.items():
        assert getattr(fit.law, name) == pytest.approx(value, rel=1e-3)


def test_another_scale_and_unit_comes_back() -> None:
    """Small models, bits per byte: nothing in the fit is tied to large numbers."""
    law = Law(E=0.6, A=30.0, B=200.0, alpha=0.4, beta=0.45)
    rungs = synthetic(law, np.geomspace(3e4, 2e6, 4), np.geomspace(3e5, 3e7, 4), noise=0.0, seed=0)
    fit = fit_parametric(rungs, draws=0)
    assert fit.law.values == pytest.approx(law.values, rel=1e-2)


def test_intervals_hold_the_truth() -> None:
    fit = fit_parametric(ladder(3), draws=100)
    for name, value in TRUE.values.items():
        assert value in fit.intervals[name]
    assert fit.intervals["E"].low < fit.law.E < fit.intervals["E"].high
    measured = ladder(4).select([19])  # another draw of the largest rung
    interval = fit.predict_interval(float(measured.parameters[0]), float(measured.tokens[0]))
    assert interval is not None and float(measured.loss[0]) in interval


@pytest.mark.slow
@pytest.mark.parametrize(("resample", "least"), [("rows", 90), ("residuals", 85)])
def test_intervals_hold_the_truth_in_95_of_100_draws(resample, least: int) -> None:
    """Nominal: 95 of 100. Whole rungs resampled keep that; resampled residuals are somewhat
    too narrow.
    """
    hits = dict.fromkeys(PARAMETERS, 0)
    for seed in range(100):
        fit = fit_parametric(ladder(seed), draws=200, seed=seed, resample=resample)
        for name in PARAMETERS:
            hits[name] += TRUE.values[name] in fit.intervals[name]
    assert min(hits.values()) >= least, hits


def test_the_gradient_is_that_of_the_objective() -> None:
    from hfstack.scaling.parametric import _ChinchillaObjective

    rungs = ladder(1)
    logs = np.log(rungs.parameters) - 20, np.log(rungs.tokens) - 25
    problem = _ChinchillaObjective(*logs, np.log(rungs.loss), np.ones(len(rungs)))
    point = np.array([[0.5, -1.0, -1.2, 0.3, 0.4]])
    _, gradient = problem(point, np.arange(1))
    for column in range(5):
        step = np.eye(5)[column] * 1e-6
        rise = problem(point + step, np.arange(1))[0] - problem(point - step, np.arange(1))[0]
        assert gradient[0, column] == pytest.approx(rise[0] / 2e-6, rel=1e-4, abs=1e-7)


def test_by_hand() -> None:
    """Huber: 5e-4 is inside the bend, 3e-3 beyond it. L(1e8, 1e10) = 1.5 + 1000/1e4 + 400/1e5."""
    value, slope = huber(np.array([5e-4, -3e-3]))
    np.testing.assert_allclose(value, [1.25e-7, 1e-3 * 2.5e-3])
    np.testing.assert_allclose(slope, [5e-4, -1e-3])
    law = Law(E=1.5, A=1000, B=400, alpha=0.5, beta=0.5)
    assert law.loss(1e8, 1e10) == pytest.approx(1.5 + 0.1 + 0.004)
    logs, shares = predict_logs(
        np.log([[1.5, 1000, 400, np.e**0.5, np.e**0.5]]), np.log([1e8]), np.log([1e10])
    )
    assert np.exp(logs[0, 0]) == pytest.approx(1.604)
    np.testing.assert_allclose(shares[0, 0], np.array([1.5, 0.1, 0.004]) / 1.604)


def test_the_optimum_is_where_the_loss_is_lowest() -> None:
    parameters, tokens = TRUE.optimum(6e21)
    assert 6 * parameters * tokens == pytest.approx(6e21)
    for factor in (0.9, 1.1):
        assert TRUE.loss(parameters * factor, tokens / factor) > TRUE.loss(parameters, tokens)
    more, _ = TRUE.optimum(6e22)
    assert np.log10(more / parameters) == pytest.approx(TRUE.parameters_exponent)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (slice(0, 4), "4 rungs for the 5 parameters of E"),
        (slice(0, 10), "needs rungs at 3 or more different numbers of tokens, these have 2"),
        ([0, 1, 5, 6, 10, 11, 15, 16], "needs rungs at 3 or more different sizes, these have 2"),
    ],
)
def test_too_little_data_is_refused(rows, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_parametric(ladder(0).select(rows))


def test_a_fixed_ratio_is_refused() -> None:
    sizes = np.geomspace(1e7, 1e9, 8)
    loss = [TRUE.loss(n, 20 * n) for n in sizes]
    with pytest.raises(DataError, match="tokens rise in step with parameters"):
        fit_parametric(make_rungs(sizes, 20 * sizes, loss))


def test_losses_that_rise_with_size_are_refused() -> None:
    rungs = ladder(0)
    with pytest.raises(
        DataError, match=r"losses rise with the number of parameters \(log-log slope \+0"
    ):
        fit_parametric(make_rungs(rungs.parameters[::-1], rungs.tokens, rungs.loss))


def test_no_rung_to_spare_is_said_and_no_fall_is_refused() -> None:
    rungs = ladder(0)
    exact = fit_parametric(rungs.select([0, 6, 12, 18, 4]))
    assert exact.intervals == {} and "goes through every point" in exact.notes[0]
    flat = make_rungs(
        rungs.parameters, rungs.tokens, [1.8 + 480 / n**0.35 for n in rungs.parameters]
    )
    with pytest.raises(
        DataError, match="they show no power law of tokens; add rungs over a wider range of tokens"
    ):
        fit_parametric(flat, draws=0)


def test_a_law_without_a_lowest_point_has_none() -> None:
    assert all(np.isnan(value) for value in Law(1.0, 10.0, 10.0, -0.1, 0.3).optimum(1e18))


def test_rungs_in_which_size_does_harm_are_refused_and_the_rest_is_kept() -> None:
    """Six rungs of a real ladder whose larger models had too few steps: log-log slopes are not
    enough to see it.
    """
    parameters = [172350, 113900, 59552, 113900, 59552, 172350]
    tokens = [40320, 60032, 110210, 240770, 439300, 163330]
    rungs = make_rungs(parameters, tokens, [5.3642, 5.1333, 4.5935, 4.0017, 3.7840, 4.4139])
    found = fit_ladder(rungs, draws=20)
    assert "they show no power law of parameters" in found.refused["parametric"]
    assert found.kaplan is not None and set(pictures_of({"llama": found}, "loss")) >= {
        "loss",
        "allocation",
    }
