"""Chinchilla's first two approaches, on laws whose optimum is known and on published curves."""

import csv
from pathlib import Path

import numpy as np
import pytest

from hfstack.errors import DataError
from hfstack.scaling.isoflop import fit_envelope, fit_isoflop, isoflop_groups
from hfstack.scaling.parametric import Law
from hfstack.scaling.rungs import Rungs, make_rungs

SETTING = ("dataset", "hparams", "warmup", "decay", "param_count", "val")
LAW = Law(E=1.7, A=400.0, B=2000.0, alpha=0.35, beta=0.37)


def curves(
    computes: np.ndarray, *, sizes: int = 7, reach: float = 4.0, noise: float = 0.0, seed: int = 0
) -> Rungs:
    """Runs around the best size of each compute."""
    n = np.concatenate(
        [LAW.optimum(c)[0] * np.geomspace(1 / reach, reach, sizes) for c in computes]
    )
    c = np.repeat(computes, sizes)
    loss = np.array([LAW.loss(*point) for point in zip(n, c / 6 / n, strict=True)])
    return make_rungs(
        n, c / 6 / n, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
    )


def porian(folder: Path) -> tuple[list[dict[str, str]], dict[tuple[str, ...], Rungs]]:
    with (folder / "scaling" / "porian_published_fits.csv").open() as file:
        published = list(csv.DictReader(file))
    with (folder / "scaling" / "porian_isoflop.csv").open() as file:
        rows = list(csv.DictReader(file))
    runs = {}
    for setting in published:
        key = tuple(setting[name] for name in SETTING)
        own = [row for row in rows if tuple(row[name] for name in SETTING) == key]
        columns = {
            name: [row[name] for row in own] for name in ("N_params", "D_tokens", "loss", "C_flop")
        }
        runs[key] = make_rungs(
            *(columns[name] for name in ("N_params", "D_tokens", "loss")), flops=columns["C_flop"]
        )
    return published, runs


@pytest.mark.shared
@pytest.mark.parametrize(
    ("shape", "window", "bound"), [("akima", None, 0.004), ("parabola", 10, 0.03)]
)
def test_published_exponents_from_the_runs_themselves(
    shape, window, bound: float, shared_data: Path
) -> None:
    """The authors interpolate by Akima's method and average over noise; without the noise the last
    digit differs.
    """
    published, runs = porian(shared_data)
    for row in published:
        found = fit_isoflop(
            runs[tuple(row[name] for name in SETTING)], shape=shape, window=window, draws=0
        )
        assert found.parameters_law.exponent == pytest.approx(float(row["n_exponent"]), abs=bound)


def test_the_known_optimum_is_found() -> None:
    found = fit_isoflop(curves(np.geomspace(1e18, 1e21, 4), reach=2.0), draws=20)
    assert found.parameters_law.exponent == pytest.approx(LAW.parameters_exponent, abs=0.002)
    assert found.tokens_law.exponent == pytest.approx(1 - LAW.parameters_exponent, abs=0.002)
    assert found.loss_law.exponent < 0
    for curve in found.curves:
        parameters, tokens = LAW.optimum(curve.flops)
        assert curve.optimum_parameters == pytest.approx(parameters, rel=0.02)
        assert curve.optimum_tokens == pytest.approx(tokens, rel=0.02)
        assert curve.optimum_loss == pytest.approx(LAW.loss(parameters, tokens), rel=1e-3)


def test_the_interval_holds_the_exponent() -> None:
    hits = 0
    for seed in range(20):
        runs = curves(np.geomspace(1e18, 1e21, 5), sizes=9, noise=0.003, seed=seed)
        interval = fit_isoflop(runs, draws=100, seed=seed).exponent_interval
        assert interval is not None
        hits += LAW.parameters_exponent in interval
    assert hits >= 17


def test_a_curve_without_a_minimum_is_left_out_and_said() -> None:
    runs = curves(np.geomspace(1e18, 1e21, 3))
    largest = LAW.optimum(1e22)[0] * np.array([0.02, 0.05, 0.1])
    beyond = make_rungs(largest, 1e22 / 6 / largest, [LAW.loss(n, 1e22 / 6 / n) for n in largest])
    both = make_rungs(
        np.append(runs.parameters, beyond.parameters),
        np.append(runs.tokens, beyond.tokens),
        np.append(runs.loss, beyond.loss),
    )
    found = fit_isoflop(both, draws=0)
    assert len(found.curves) == 4 and len(found.flops) == 3
    assert "C = 1e+22 is left out: the minimum lies beyond the largest of its sizes" in found.notes


def test_groups_and_refusals() -> None:
    runs = curves(np.array([1e18, 1e19]))
    assert [len(group) for group in isoflop_groups(runs)] == [7, 7]
    with pytest.raises(
        DataError, match="1 of 1 computes have a minimum inside their 3 or more sizes, 2 are needed"
    ):
        fit_isoflop(curves(np.array([1e18])))
    with pytest.raises(DataError, match="1 of 3 rungs are on the frontier"):
        fit_envelope(make_rungs([1e5, 2e5, 4e5], [1e6, 1e6, 1e6], [3.0, 3.1, 3.2]))


def test_the_envelope() -> None:
    found = fit_envelope(curves(np.geomspace(1e18, 1e21, 6), sizes=15))
    assert len(found.flops) == 6 and not found.curves
    assert found.parameters_law.exponent == pytest.approx(LAW.parameters_exponent, abs=0.03)
    assert found.loss_law.exponent < 0
