"""The data-constrained law: its constants come back, and its effective amounts by hand."""

import numpy as np
import pytest

from hfstack.errors import DataError
from hfstack.scaling.parametric import Law
from hfstack.scaling.repeated_data import RepeatedLaw, best_size, fit_repeated
from hfstack.scaling.rungs import make_rungs

# Muennighoff et al. 2023, equation 18
PLAIN = Law(E=1.87, A=521.0, B=1488.0, alpha=0.353, beta=0.353)
TRUE = RepeatedLaw(PLAIN, tokens_decay=15.4, parameters_decay=5.3)


def ladder(seed: int, noise: float):
    rng = np.random.default_rng(seed)
    parameters, unique = (
        np.tile(np.geomspace(1e7, 3e9, 6), 6),
        np.repeat(np.geomspace(1e8, 2e10, 6), 6),
    )
    tokens = unique * rng.uniform(1, 60, 36)
    loss = np.array([TRUE.loss(*rung) for rung in zip(parameters, tokens, unique, strict=True)])
    return make_rungs(
        parameters, tokens, loss * np.exp(noise * rng.standard_normal(36)), unique_tokens=unique
    )


def test_the_constants_come_back() -> None:
    fit = fit_repeated(ladder(0, 0.0), PLAIN, draws=0)
    assert fit.law.tokens_decay == pytest.approx(15.4, rel=1e-3)
    assert fit.law.parameters_decay == pytest.approx(5.3, rel=1e-3)


def test_intervals_hold_the_constants() -> None:
    hits = np.zeros(2)
    for seed in range(4):
        found = fit_repeated(ladder(seed, 0.003), PLAIN, draws=40, seed=seed).intervals
        hits += [15.4 in found["tokens_decay"], 5.3 in found["parameters_decay"]]
    assert hits.min() >= 3


def test_by_hand() -> None:
    """4 epochs: D' = U (1 + 15.4 (1 - exp(-3 / 15.4))) = 3.726 U; one epoch changes nothing."""
    unique = 1e9
    size = best_size(PLAIN, unique)
    parameters, tokens = TRUE.effective(size, 4 * unique, unique)
    assert tokens == pytest.approx(unique * (1 + 15.4 * (1 - np.exp(-3 / 15.4))))
    assert tokens / unique == pytest.approx(3.7255, abs=1e-3)
    assert parameters == pytest.approx(size)
    assert TRUE.loss(size, unique, unique) == pytest.approx(PLAIN.loss(size, unique))
    twice, _ = TRUE.effective(2 * size, unique, unique)
    assert twice == pytest.approx(size * (1 + 5.3 * (1 - np.exp(-1 / 5.3))))
    assert TRUE.loss(size, 10 * unique, unique) > PLAIN.loss(size, 10 * unique)
    # the best size is where Chinchilla's optimum spends exactly these tokens
    assert PLAIN.optimum(6 * size * unique)[0] == pytest.approx(size)


def test_data_that_was_not_repeated_is_refused() -> None:
    rungs = ladder(0, 0.0)
    once = make_rungs(rungs.parameters, rungs.tokens, rungs.loss)
    with pytest.raises(DataError, match="0 of 36 rungs read their data more than once"):
        fit_repeated(once, PLAIN)


def test_what_the_rungs_cannot_tell_is_said() -> None:
    parameters, unique = np.full(6, 1e6), np.full(6, 1e10)
    tokens = unique * np.array([1.2, 1.5, 2, 2.5, 3, 3.5])
    loss = [TRUE.loss(*rung) for rung in zip(parameters, tokens, unique, strict=True)]
    notes = fit_repeated(
        make_rungs(parameters, tokens, loss, unique_tokens=unique), PLAIN, draws=0
    ).notes
    assert any("R_N* is not determined" in note for note in notes)
