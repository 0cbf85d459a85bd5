"""Write scaling fits as the tables and the metrics of a run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hfstack.scaling.fit import LadderFit
from hfstack.scaling.parametric import PARAMETERS
from hfstack.scaling.power_laws import PowerLaw

Fits = Mapping[str, LadderFit]
FitTable = tuple[list[str], list[list[Any]]]

_SIGNIFICANT_DIGITS = 5
_INTERVAL_ENDS = ["low", "high"]


def metrics_of(fits: Fits) -> dict[str, float]:
    """Return the numbers of every fit, by name.

    With several families, each name begins with its family's, as in `gru_alpha`.
    """
    found: dict[str, float] = {}
    for family, fit in fits.items():
        prefix = f"{family}_" if len(fits) > 1 else ""
        found |= {f"{prefix}{name}": value for name, value in _metrics(fit).items()}
    return found


def _metrics(fit: LadderFit) -> dict[str, float]:
    """Return the numbers of one family's fit."""
    found: dict[str, float] = {"rungs": len(fit.rungs)}

    # the parametric law, with its intervals
    if fit.parametric is not None:
        found |= fit.parametric.law.values
        found |= {
            "a": fit.parametric.law.parameters_exponent,
            "huber_loss": fit.parametric.objective,
        }
        for name, interval in fit.parametric.intervals.items():
            found |= {f"{name}_low": interval.low, f"{name}_high": interval.high}

    # the power laws
    for letter, law in (fit.kaplan.laws if fit.kaplan else {}).items():
        found[f"{letter}_exponent"] = law.exponent
    for name, part in (("envelope", fit.envelope), ("isoflop", fit.isoflop)):
        if part is not None:
            found[f"{name}_a"] = part.parameters_law.exponent
    if fit.repeated is not None:
        found |= {
            "tokens_decay": fit.repeated.law.tokens_decay,
            "parameters_decay": fit.repeated.law.parameters_decay,
        }

    # how far the predictions of held-out rungs were off
    for form, key in (
        ("parametric", "held_out_error"),
        ("power law of compute", "held_out_error_power_law"),
    ):
        errors = [abs(prediction.error) for prediction in fit.held_out if prediction.form == form]
        if errors:
            found[key] = float(np.mean(errors))
    return found


def tables_of(fits: Fits) -> dict[str, FitTable]:
    """Return the tables by name, without those that would be empty."""
    made = {
        "parameters of L = E + A/N^alpha + B/D^beta": _parameters_table(fits),
        "power laws": _power_laws_table(fits),
        "held-out rungs": _held_out_table(fits),
        "repeated data": _repeated_data_table(fits),
        "rungs": _rungs_table(fits),
        "not fitted": _refused_table(fits),
        "notes": _notes_table(fits),
    }
    return {name: table for name, table in made.items() if table[1]}


def draws_table(fits: Fits) -> str:
    """Return every bootstrap refit of the parametric law as CSV.

    An interval of anything is computed from these.
    """
    lines = [",".join(("family", *PARAMETERS))]
    for family, fit in fits.items():
        for law in fit.parametric.draws if fit.parametric else []:
            lines.append(",".join([family, *(f"{value:.8g}" for value in law.values.values())]))
    return "\n".join(lines) + "\n"


def _parameters_table(fits: Fits) -> FitTable:
    rows = []
    for family, fit in fits.items():
        if fit.parametric is not None:
            values = {**fit.parametric.law.values, "a": fit.parametric.law.parameters_exponent}
            for name, value in values.items():
                interval = fit.parametric.intervals.get(name)
                rows.append([family, name, _round(value), *_ends(interval)])
    return ["family", "parameter", "value", *_INTERVAL_ENDS], rows


def _power_laws_table(fits: Fits) -> FitTable:
    rows: list[list[Any]] = []

    def add(family: str, name: str, law: PowerLaw, interval: Any = None) -> None:
        ends = _ends(interval or law.exponent_interval)
        coefficient, exponent = _round(law.coefficient), _round(law.exponent)
        fit = [_round(law.r_squared), law.points]
        rows.append([family, name, coefficient, exponent, *ends, *fit])

    for family, fit in fits.items():
        for letter, law in (fit.kaplan.laws if fit.kaplan else {}).items():
            add(family, f"L({letter})", law)
        for name, part in (("envelope", fit.envelope), ("IsoFLOP", fit.isoflop)):
            if part is not None:
                add(family, f"N*(C), {name}", part.parameters_law, part.exponent_interval)
                add(family, f"D*(C), {name}", part.tokens_law)
                add(family, f"L*(C), {name}", part.loss_law)
    columns = ["family", "law", "coefficient", "exponent", *_INTERVAL_ENDS]
    return [*columns, "R squared", "points"], rows


def _held_out_table(fits: Fits) -> FitTable:
    rows = []
    for family, fit in fits.items():
        for p in fit.held_out:
            inside = None
            if p.interval is not None:
                inside = "yes" if p.measured in p.interval else "no"
            rung = [_round(value) for value in (p.parameters, p.tokens, p.flops)]
            losses = [_round(p.measured), _round(p.predicted), f"{100 * p.error:+.2f} %"]
            rows.append(
                [family, p.form, *rung, *losses, *_ends(p.interval), inside, p.fitted_rungs]
            )
    columns = ["family", "form", "N", "D", "C", "measured", "predicted", "error", *_INTERVAL_ENDS]
    return [*columns, "inside", "fitted rungs"], rows


def _repeated_data_table(fits: Fits) -> FitTable:
    rows = []
    for family, fit in fits.items():
        if fit.repeated is not None:
            law, intervals = fit.repeated.law, fit.repeated.intervals
            for name in ("tokens_decay", "parameters_decay"):
                value = _round(getattr(law, name))
                rows.append([family, name, value, *_ends(intervals.get(name))])
    return ["family", "parameter", "value", *_INTERVAL_ENDS], rows


def _rungs_table(fits: Fits) -> FitTable:
    rows = []
    for family, fit in fits.items():
        rungs = fit.rungs
        for place in np.argsort(rungs.flops, kind="stable"):
            columns = (rungs.parameters, rungs.tokens, rungs.epochs, rungs.flops, rungs.loss)
            off = fit.parametric.residuals[place] if fit.parametric else None
            cell = None if off is None else f"{100 * np.expm1(off):+.2f} %"
            rows.append([family, *(_round(float(values[place])) for values in columns), cell])
    return ["family", "N", "D", "epochs", "C", "loss", "over the law"], rows


def _refused_table(fits: Fits) -> FitTable:
    rows = [
        [family, form, reason]
        for family, fit in fits.items()
        for form, reason in fit.refused.items()
    ]
    return ["family", "form", "reason"], rows


def _notes_table(fits: Fits) -> FitTable:
    rows = [[family, note] for family, fit in fits.items() for note in fit.notes]
    return ["family", "note"], rows


def _round(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")


def _ends(interval: Any) -> list[float | None]:
    return [None, None] if interval is None else [_round(interval[0]), _round(interval[1])]
