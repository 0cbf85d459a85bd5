"""Draw scaling fits: losses, IsoFLOPs, allocation, residuals, intervals.

Every picture takes the fits by family (Transformer, GRU, LSTM...), so that families share a plot.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from hfstack.drawing.panels import Marks, Panel, Style, draw_panels
from hfstack.reporting.scaling.tables import Fits
from hfstack.scaling.fit import LadderFit
from hfstack.scaling.isoflop import Allocation, IsoFlopCurve
from hfstack.scaling.power_laws import best_of_steps, frontier
from hfstack.scaling.rungs import FLOPS_PER_PARAMETER_TOKEN

_LAW_POINTS = 40  # of a law's line
_CURVE_POINTS = 80  # of an IsoFLOP curve
_COMPUTE = "training compute C, FLOPs"
_NAMED_CURVES = 8
_MINIMUM_COLOR = 1
_SHADES = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#084594", "#041f4a")


def pictures_of(fits: Fits, unit: str) -> dict[str, str]:
    """Return every picture that the fits have something to show in, by name, as SVG.

    Args:
        fits: by family.
        unit: of the losses.
    """
    made = {
        "loss": loss_curves(fits, unit),
        "isoflop": isoflop_curves(fits, unit),
        "allocation": allocation(fits),
        "residuals": residuals(fits),
        "intervals": intervals(fits),
    }
    return {name: picture for name, picture in made.items() if picture is not None}


def loss_curves(fits: Fits, unit: str) -> str:
    """Return loss over parameters, tokens and compute, with the power laws.

    Rings are rungs that another one of their size or compute beats; laws are fitted to the others.
    """
    panels = []
    for letter, x_label in (("N", "parameters N"), ("D", "tokens D"), ("C", _COMPUTE)):
        marks: list[Marks] = []
        for color, (family, fit) in enumerate(fits.items()):
            marks += _loss_marks(letter, family, fit, color)
        exact = letter == "C"
        panels.append(Panel(f"L({letter})", x_label, unit, marks, y_kind="loss", scientific=exact))
    return draw_panels("Loss over parameters, tokens and compute", panels)


def _loss_marks(letter: str, family: str, fit: LadderFit, color: int) -> list[Marks]:
    """Return the rungs of a family over N, D or C, and the laws that describe them."""
    rungs = fit.rungs
    values = {"N": rungs.parameters, "D": rungs.tokens, "C": rungs.flops}[letter]

    # A law is fitted to the best rung of each size, or to those that no cheaper one beats.
    choose = frontier if letter == "C" else best_of_steps
    best = choose(values, rungs.loss)
    others = [row for row in range(len(values)) if row not in best]
    points = [(float(values[row]), float(rungs.loss[row])) for row in best]
    rest = [(float(values[row]), float(rungs.loss[row])) for row in others]
    marks = [Marks(rest, "", color, "rings"), Marks(points, family, color)]

    law = fit.kaplan.laws.get(letter) if fit.kaplan else None
    if law is not None:
        ends = np.geomspace(values[best].min(), values.max(), _LAW_POINTS)
        marks.append(Marks([(float(x), law.predict(x)) for x in ends], "", color, "line"))

    if letter == "C" and fit.parametric is not None:
        law = fit.parametric.law
        floor = [(c, law.loss(*law.optimum(product))) for c, product in _computes(fit)]
        marks.append(Marks(floor, f"{family}: best of L(N, D) at each C", color, "dashed"))
    return marks


def isoflop_curves(fits: Fits, unit: str) -> str | None:
    """Return the curve of each compute and its minimum, a panel a family, or None."""
    panels = []
    for family, fit in fits.items():
        if fit.isoflop is None:
            continue
        curves = fit.isoflop.curves
        marks: list[Marks] = []
        for place, curve in enumerate(curves):
            shade = _SHADES[round(place * (len(_SHADES) - 1) / max(1, len(curves) - 1))]
            name = f"{curve.flops:.1e}" if len(curves) <= _NAMED_CURVES else ""
            marks.append(Marks(_line_of(curve), "", shade, "line"))
            marks.append(Marks(_pair_up(curve.parameters, curve.loss), "", shade, name=name))

        lowest = [(c.optimum_parameters, c.optimum_loss) for c in curves if not c.doubt]
        marks.append(Marks(lowest, "minimum of each compute", _MINIMUM_COLOR, "rings"))
        title = f"{family}: curves of equal FLOPs"
        panels.append(Panel(title, "parameters N", unit, marks, y_kind="loss"))
    return draw_panels("IsoFLOP curves", panels, height=400) if panels else None


def allocation(fits: Fits) -> str | None:
    """Return N* and D* over compute by each of Chinchilla's approaches, or None."""
    panels = []
    for what, label in (("parameters", "best parameters N*"), ("tokens", "best tokens D*")):
        marks: list[Marks] = []
        for color, (family, fit) in enumerate(fits.items()):
            marks += _allocation_marks(what, family, fit, color)
        panels.append(Panel(label, _COMPUTE, label, marks, scientific=True))
    if not panels[0].marks:
        return None
    return draw_panels("How compute is best divided", panels, height=380)


def _allocation_marks(what: str, family: str, fit: LadderFit, color: int) -> list[Marks]:
    """Return the best parameters or tokens of a family, as each approach finds them."""
    marks: list[Marks] = []
    approaches: list[tuple[str, Allocation | None, Style]] = [
        ("envelope", fit.envelope, "rings"),
        ("IsoFLOP", fit.isoflop, "dots"),
    ]
    for name, found, style in approaches:
        if found is None:
            continue
        points = _pair_up(found.flops, getattr(found, what))
        law = getattr(found, f"{what}_law")
        ends = [(float(c), law.predict(c)) for c in (found.flops.min(), found.flops.max())]
        marks.append(Marks(points, f"{family}, {name}", color, style))
        marks.append(Marks(ends, "", color, "line"))

    if fit.parametric is not None:
        law, index = fit.parametric.law, 0 if what == "parameters" else 1
        line = [(c, law.optimum(product)[index]) for c, product in _computes(fit)]
        marks.append(Marks(line, f"{family}, parametric", color, "dashed"))
    return marks


def residuals(fits: Fits) -> str | None:
    """Return measured over predicted loss, in percent, of fitted and held-out rungs."""
    panels = []
    for what, label in (("flops", _COMPUTE), ("parameters", "parameters N")):
        marks = []
        for color, (family, fit) in enumerate(fits.items()):
            if fit.parametric is not None:
                percent = 100 * np.expm1(fit.parametric.residuals)
                points = _pair_up(getattr(fit.rungs, what), percent)
                marks.append(Marks(points, f"{family}, fitted", color))

            held = [
                (getattr(p, what), 100 * (p.measured / p.predicted - 1))
                for p in fit.held_out
                if p.form == "parametric"
            ]
            if held:
                name = f"{family}, held out and predicted from the smaller"
                marks.append(Marks(held, name, color, "rings"))

        panel = Panel("measured over predicted loss", label, "percent", marks, y_kind="linear")
        panels.append(replace(panel, scientific=what == "flops", zero=True))
    return draw_panels("Residuals of the parametric law", panels) if panels[0].marks else None


def intervals(fits: Fits) -> str | None:
    """Return parameters with 95 % intervals, a panel a parameter, a row a family."""
    known = {
        family: fit.parametric
        for family, fit in fits.items()
        if fit.parametric and fit.parametric.intervals
    }
    if not known:
        return None

    panels = []
    for name, meaning in (
        ("E", "loss that no size and no data removes"),
        ("alpha", "fall with N"),
        ("beta", "fall with D"),
        ("a", "N* goes with C^a"),
    ):
        marks = []
        for row, (family, fit) in enumerate(known.items()):
            color, interval = list(fits).index(family), fit.intervals[name]
            value = fit.law.parameters_exponent if name == "a" else getattr(fit.law, name)
            marks.append(Marks(ranges=[(row, interval.low, interval.high)], color=color))
            marks.append(Marks([(value, row)], family, color))

        rows = tuple(known)
        panels.append(Panel(name, meaning, "", marks, x_kind="linear", y_kind="linear", rows=rows))
    return draw_panels("Parameters and their 95 % intervals", panels, height=120 + 34 * len(known))


def _computes(fit: LadderFit) -> list[tuple[float, float]]:
    """Return computes along the ladder: as counted, and as 6ND for a law's optimum."""
    ratio = float(np.median(fit.rungs.flops / (fit.rungs.parameters * fit.rungs.tokens)))
    counted = np.geomspace(fit.rungs.flops.min(), fit.rungs.flops.max(), _LAW_POINTS)
    return [(float(c), float(c * FLOPS_PER_PARAMETER_TOKEN / ratio)) for c in counted]


def _line_of(curve: IsoFlopCurve) -> list[tuple[float, float]]:
    """Return the fitted curve, thinned out."""
    step = max(1, len(curve.line_parameters) // _CURVE_POINTS)
    return _pair_up(curve.line_parameters[::step], curve.line_loss[::step])


def _pair_up(x: Iterable[float], y: Iterable[float]) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
