"""All forms together: what is fitted, what is refused with a reason, and the largest rung
predicted.
"""

import numpy as np
import pytest

from hfstack.errors import DataError
from hfstack.scaling.fit import fit_ladder
from hfstack.scaling.parametric import Law
from hfstack.scaling.repeated_data import RepeatedLaw
from hfstack.scaling.rungs import Rungs, make_rungs

LAW = Law(E=1.6, A=120.0, B=900.0, alpha=0.45, beta=0.42)


def ladder(noise: float = 0.002, ratio: float | None = None) -> Rungs:
    """Four sizes at three computes, or at one ratio of tokens to parameters."""
    sizes = np.tile([6e4, 1.5e5, 4e5, 1e6], 1 if ratio else 3)
    tokens = sizes * ratio if ratio else np.repeat([1e12, 4e12, 1.6e13], 4) / 6 / sizes
    loss = np.array([LAW.loss(*point) for point in zip(sizes, tokens, strict=True)])
    return make_rungs(
        sizes, tokens, loss * np.exp(noise * np.random.default_rng(0).standard_normal(len(loss)))
    )


def test_a_whole_ladder() -> None:
    found = fit_ladder(ladder(), draws=60)
    assert set(found.fitted) >= {"kaplan", "envelope", "parametric"}
    assert "no rung read its data more than once" in found.refused["repeated"]
    assert found.kaplan and all(law.exponent < 0 for law in found.kaplan.laws.values())
    assert found.parametric is not None and pytest.approx(LAW.E, rel=0.3) == found.parametric.law.E
    by_form = {prediction.form: prediction for prediction in found.held_out}
    assert set(by_form) == {"power law of compute", "parametric"}
    for prediction in found.held_out:
        assert prediction.flops == pytest.approx(1.6e13)
        assert abs(prediction.error) < (0.02 if prediction.form == "parametric" else 0.1)
    assert by_form["parametric"].fitted_rungs == 8 and by_form["parametric"].interval is not None


def test_a_ladder_of_fixed_ratio_has_power_laws_only() -> None:
    found = fit_ladder(ladder(ratio=20), draws=20)
    assert (found.parametric is None and "tokens rise in step" in found.refused["parametric"]) or (
        "4 rungs for the 5 parameters" in found.refused["parametric"]
    )
    assert found.fitted == ["kaplan", "envelope"]
    assert [prediction.form for prediction in found.held_out] == ["power law of compute"]


def test_repeated_data() -> None:
    law = RepeatedLaw(LAW, tokens_decay=6.0, parameters_decay=4.0)
    once = ladder(noise=0.0)
    unique = np.tile([2e5, 1e6], 6)
    tokens = unique * np.repeat([2.0, 4.0, 8.0, 16.0, 24.0, 32.0], 2)
    loss = [law.loss(*rung) for rung in zip(once.parameters, tokens, unique, strict=True)]
    rungs = make_rungs(
        np.append(once.parameters, once.parameters),
        np.append(once.tokens, tokens),
        np.append(once.loss, loss),
        unique_tokens=np.append(once.tokens, unique),
    )
    found = fit_ladder(rungs, draws=0)
    assert found.repeated is not None
    assert found.repeated.law.tokens_decay == pytest.approx(6.0, rel=0.02)
    assert any(
        "12 rungs read their data more than once (up to 32.0 times)" in note for note in found.notes
    )


def test_a_form_that_was_asked_for_is_an_error_when_it_cannot_be_had() -> None:
    with pytest.raises(DataError, match="4 rungs for the 5 parameters"):
        fit_ladder(ladder(ratio=20), forms=["parametric"])
    with pytest.raises(DataError, match="1 rung: a scaling law needs at least 2"):
        fit_ladder(ladder().select([0]))
    assert fit_ladder(ladder(), forms=["kaplan"], draws=0).fitted == ["kaplan"]


def test_losses_that_rise_are_refused() -> None:
    rungs = ladder()
    order = np.argsort(-rungs.parameters)
    with pytest.raises(DataError, match="losses rise with the number of"):
        fit_ladder(
            make_rungs(np.sort(rungs.parameters), rungs.tokens[order], np.linspace(2, 4, 12))
        )
