"""The batched L-BFGS against scipy's, problem by problem."""

import numpy as np
from scipy.optimize import minimize, rosen, rosen_der

from hfstack.scaling.batched_lbfgs import minimise


def rosenbrock(points: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.array([rosen(p) for p in points]), np.array([rosen_der(p) for p in points])


def test_rosenbrock_from_many_starts() -> None:
    starts = np.random.default_rng(0).uniform(-2, 2, size=(20, 4))
    found = minimise(rosenbrock, starts, iterations=2000, tolerance=1e-14)
    for start, value in zip(starts, found.value, strict=True):
        theirs = minimize(
            rosen, start, jac=rosen_der, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14}
        )
        assert value <= theirs.fun + 1e-6


def test_each_problem_has_data_of_its_own() -> None:
    centers = np.random.default_rng(1).normal(size=(7, 3))

    def parabola(points: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        away = points - centers[rows]
        return (away**2).sum(1) + 1, 2 * away

    found = minimise(parabola, np.zeros((7, 3)))
    np.testing.assert_allclose(found.parameters, centers, atol=1e-6)
    np.testing.assert_allclose(found.value, 1)


def test_a_start_that_cannot_go_down_stays() -> None:
    found = minimise(lambda x, rows: (np.ones(len(x)), np.zeros_like(x)), np.full((2, 2), 3.0))
    np.testing.assert_array_equal(found.parameters, 3.0)
