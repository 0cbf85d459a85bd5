"""Fit all forms that the rungs of a ladder can carry, and say what was refused.

The largest rung is predicted from the others, which says how far off they are.

    fit_ladder(make_rungs(parameters, tokens, loss)) -> LadderFit

The forms stand in files of their own: power_laws.py (Kaplan), isoflop.py (Chinchilla's envelope and
IsoFLOP curves), parametric.py (Chinchilla's third approach) and repeated_data.py (Muennighoff).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hfstack.errors import DataError
from hfstack.intervals import Interval
from hfstack.scaling.isoflop import Allocation, Shape, fit_envelope, fit_isoflop
from hfstack.scaling.parametric import ParametricFit, Resample, fit_parametric
from hfstack.scaling.power_laws import KaplanFit, fit_kaplan, fit_power_law, frontier
from hfstack.scaling.repeated_data import RepeatedFit, fit_repeated, repeating
from hfstack.scaling.rungs import Rungs, refuse_rising, split_largest

FORMS = ("kaplan", "envelope", "isoflop", "parametric", "repeated")


@dataclass(frozen=True)
class Prediction:
    """The loss of a held-out rung, predicted from the smaller ones."""

    form: str
    parameters: float
    tokens: float
    flops: float
    measured: float
    predicted: float
    interval: Interval | None
    """95 %, for one rung with its own noise; None where the fit has no rung to spare."""
    fitted_rungs: int

    @property
    def error(self) -> float:
        """Return predicted over measured loss, less 1."""
        return self.predicted / self.measured - 1


@dataclass
class LadderFit:
    """The forms that could be fitted, and what was said about the others."""

    rungs: Rungs
    kaplan: KaplanFit | None = None
    envelope: Allocation | None = None
    isoflop: Allocation | None = None
    parametric: ParametricFit | None = None
    repeated: RepeatedFit | None = None
    held_out: list[Prediction] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Form to the reason why it was not fitted."""
    notes: list[str] = field(default_factory=list)

    @property
    def fitted(self) -> list[str]:
        """Return the names of the forms that were fitted."""
        return [form for form in FORMS if getattr(self, form)]


def fit_ladder(
    rungs: Rungs,
    *,
    forms: Sequence[str] = (),
    draws: int = 200,
    seed: int = 0,
    resample: Resample = "rows",
    shape: Shape = "parabola",
    window: float | None = None,
    name: str = "",
) -> LadderFit:
    """Fit every form that the rungs can carry, and predict the largest rung.

    Args:
        rungs: of one architecture on one corpus.
        forms: what must be fitted, of `FORMS`; empty for whatever can be, with the reasons for the
            rest in `refused`.
        draws: bootstrap refits.
        seed: of the bootstrap.
        resample: see `fit_parametric`.
        shape: of the IsoFLOP curves, see `fit_isoflop`.
        window: around the best run of each compute, see `fit_isoflop`.
        name: of the family, in front of a refusal.

    Raises:
        DataError: a form of `forms` cannot be fitted, none can, or losses rise with size or data.
    """
    place = f"{name}: " if name else ""
    if len(rungs) < 2:
        raise DataError(
            f"{place}{len(rungs)} rung: a scaling law needs at least 2, and to be of use 6 or more"
        )
    try:
        refuse_rising(rungs)
    except DataError as error:
        raise DataError(f"{place}{error}") from None

    found = LadderFit(rungs)
    fitters: dict[str, Callable[[], Any]] = {
        "kaplan": lambda: fit_kaplan(rungs),
        "envelope": lambda: fit_envelope(rungs),
        "isoflop": lambda: fit_isoflop(rungs, shape=shape, window=window, draws=draws, seed=seed),
        "parametric": lambda: fit_parametric(rungs, draws=draws, seed=seed, resample=resample),
        "repeated": lambda: _fit_plain_then_repeated(rungs, draws, seed),
    }

    # A form that was not asked for by name may be refused.
    for form in forms or FORMS:
        try:
            setattr(found, form, fitters[form]())
        except DataError as error:
            if form in forms:
                raise DataError(f"{place}{error}") from None
            found.refused[form] = str(error)
    if not found.fitted:
        reasons = "; ".join(f"{form}: {reason}" for form, reason in found.refused.items())
        raise DataError(f"{place}{reasons}")

    for form in found.fitted:
        found.notes += [f"{form}: {note}" for note in getattr(found, form).notes]
    if repeating(rungs).any():
        found.notes.append(
            f"{int(repeating(rungs).sum())} rungs read their data more than once (up to "
            f"{rungs.epochs.max():.1f} times); all forms but `repeated` count a repeated token as "
            "a new one"
        )

    found.held_out = predict_largest(rungs, draws=draws, seed=seed, resample=resample)
    return found


def predict_largest(
    rungs: Rungs, *, draws: int = 200, seed: int = 0, resample: Resample = "rows"
) -> list[Prediction]:
    """Fit on all rungs but those of the largest compute, and predict these.

    Two forms are tried: the parametric law, and the straight line in log-log through the frontier
    of loss over compute, which is asked for the best of the largest rungs only. One that the
    smaller rungs cannot carry is left out.
    """
    small, large = split_largest(rungs)
    predictions: list[Prediction] = []
    if len(small) < 2:
        return predictions

    # the straight line through the frontier, for the best of the largest rungs
    best = int(np.argmin(large.loss))
    kept = frontier(small.flops, small.loss)
    if len(kept) >= 2:
        line = fit_power_law(small.flops[kept], small.loss[kept], name="L(C)")
        if line.exponent < 0:
            flops = float(large.flops[best])
            guess = (line.predict(flops), line.predict_interval(flops))
            predictions.append(
                _make_prediction("power law of compute", large, best, *guess, fitted=len(kept))
            )

    # the parametric law, for each of them
    try:
        fit = fit_parametric(small, draws=draws, seed=seed, resample=resample)
    except DataError:
        return predictions
    for rung in range(len(large)):
        point = float(large.parameters[rung]), float(large.tokens[rung])
        guess = fit.law.loss(*point), fit.predict_interval(*point)
        predictions.append(_make_prediction("parametric", large, rung, *guess, fitted=len(small)))
    return predictions


def _make_prediction(
    form: str, rungs: Rungs, rung: int, predicted: float, interval: Interval | None, *, fitted: int
) -> Prediction:
    """Return the prediction of one of the rungs."""
    return Prediction(
        form=form,
        parameters=float(rungs.parameters[rung]),
        tokens=float(rungs.tokens[rung]),
        flops=float(rungs.flops[rung]),
        measured=float(rungs.loss[rung]),
        predicted=predicted,
        interval=interval,
        fitted_rungs=fitted,
    )


def _fit_plain_then_repeated(rungs: Rungs, draws: int, seed: int) -> RepeatedFit:
    """Fit the plain law to rungs that repeat nothing, the decays to the others."""
    again = repeating(rungs)
    if not again.any():
        raise DataError(
            "no rung read its data more than once (give --unique_tokens_column, or runs that did)"
        )
    try:
        plain = fit_parametric(rungs.select(~again), draws=0)
    except DataError as error:
        raise DataError(
            f"of the {int((~again).sum())} rungs that repeat nothing: {error}"
        ) from None
    return fit_repeated(rungs, plain.law, draws=draws, seed=seed)
