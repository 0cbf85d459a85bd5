"""Pictures of scaling fits: loss over N, D and C, IsoFLOP curves, how compute is divided, residuals and intervals.

Every picture takes the fits by family (Transformer, GRU, LSTM...), so that families stand on one plot.
"""

from collections.abc import Mapping

import numpy as np

from hfstack.drawing.panels import Marks, Panel, Style, draw_panels
from hfstack.scaling.fit import LadderFit
from hfstack.scaling.isoflop import Allocation, IsoFlopCurve
from hfstack.scaling.power_laws import best_of_steps, frontier
from hfstack.scaling.rungs import FLOPS_PER_PARAMETER_TOKEN

Fits = Mapping[str, LadderFit]

_LINE_POINTS = 40
_DRAWN_POINTS = 80  # of an IsoFLOP curve
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
    """Loss over parameters, tokens and compute, with the power laws, and the held-out rungs that were predicted."""
    panels = []
    for letter, x_label in (
        ("N", "parameters N"),
        ("D", "tokens D"),
        ("C", "training compute C, FLOPs"),
    ):
        marks: list[Marks] = []
        for color, (family, fit) in enumerate(fits.items()):
            values = {"N": fit.rungs.parameters, "D": fit.rungs.tokens, "C": fit.rungs.flops}[
                letter
            ]
            best = (
                frontier(values, fit.rungs.loss)
                if letter == "C"
                else best_of_steps(values, fit.rungs.loss)
            )
            others = [row for row in range(len(values)) if row not in best]
            points = [(float(values[row]), float(fit.rungs.loss[row])) for row in best]
            rest = [(float(values[row]), float(fit.rungs.loss[row])) for row in others]
            marks += [Marks(rest, "", color, "rings"), Marks(points, family, color)]
            law = fit.kaplan.laws.get(letter) if fit.kaplan else None
            if law is not None:
                ends = np.geomspace(values[best].min(), values.max(), _LINE_POINTS)
                marks.append(Marks([(float(x), law.predict(x)) for x in ends], "", color, "line"))
            if letter == "C" and fit.parametric is not None:
                law = fit.parametric.law
                floor = [(c, law.loss(*law.optimum(product))) for c, product in _computes(fit)]
                marks.append(Marks(floor, f"{family}: best of L(N, D) at each C", color, "dashed"))
        panels.append(
            Panel(f"L({letter})", x_label, unit, marks, y_kind="loss", scientific=letter == "C")
        )
    return draw_panels("Loss over parameters, tokens and compute", panels)


def isoflop_curves(fits: Fits, unit: str) -> str | None:
    """The curve of each compute with its minimum, a panel a family; None where no family has them."""
    panels = []
    for family, fit in fits.items():
        if fit.isoflop is None:
            continue
        marks: list[Marks] = []
        for place, curve in enumerate(fit.isoflop.curves):
            shade = _SHADES[round(place * (len(_SHADES) - 1) / max(1, len(fit.isoflop.curves) - 1))]
            marks.append(Marks(_line_of(curve), "", shade, "line"))
            runs = list(zip(map(float, curve.parameters), map(float, curve.loss), strict=True))
            name = f"{curve.flops:.1e}" if len(fit.isoflop.curves) <= 8 else ""
            marks.append(Marks(runs, "", shade, "dots", name=name))
        lowest = [(c.optimum_parameters, c.optimum_loss) for c in fit.isoflop.curves if not c.doubt]
        marks.append(Marks(lowest, "minimum of each compute", "#c8643c", "rings"))
        panels.append(
            Panel(f"{family}: curves of equal FLOPs", "parameters N", unit, marks, y_kind="loss")
        )
    return draw_panels("IsoFLOP curves", panels, height=400) if panels else None


def allocation(fits: Fits) -> str | None:
    """N* and D* over compute by each of Chinchilla's approaches; None where no family has one."""
    panels = []
    for what, label in (("parameters", "best parameters N*"), ("tokens", "best tokens D*")):
        marks: list[Marks] = []
        for color, (family, fit) in enumerate(fits.items()):
            approaches: list[tuple[str, Allocation | None, Style]] = [
                ("envelope", fit.envelope, "rings"),
                ("IsoFLOP", fit.isoflop, "dots"),
            ]
            for name, found, style in approaches:
                if found is None:
                    continue
                values = getattr(found, what)
                points = list(zip(map(float, found.flops), map(float, values), strict=True))
                marks.append(Marks(points, f"{family}, {name}", color, style))
                law = getattr(found, f"{what}_law")
                ends = [(float(c), law.predict(c)) for c in (found.flops.min(), found.flops.max())]
                marks.append(Marks(ends, "", color, "line"))
            if fit.parametric is not None:
                index = 0 if what == "parameters" else 1
                line = [
                    (c, fit.parametric.law.optimum(product)[index]) for c, product in _computes(fit)
                ]
                marks.append(Marks(line, f"{family}, parametric", color, "dashed"))
        panels.append(Panel(label, "training compute C, FLOPs", label, marks, scientific=True))
    return (
        draw_panels("How compute is best divided", panels, height=380) if panels[0].marks else None
    )


def residuals(fits: Fits) -> str | None:
    """Measured over predicted loss, in percent, of the parametric law and of the held-out rungs."""
    panels = []
    for what, label in (("flops", "training compute C, FLOPs"), ("parameters", "parameters N")):
        marks = []
        for color, (family, fit) in enumerate(fits.items()):
            if fit.parametric is not None:
                percent = 100 * np.expm1(fit.parametric.residuals)
                values = getattr(fit.rungs, what)
                points = list(zip(map(float, values), map(float, percent), strict=True))
                marks.append(Marks(points, f"{family}, fitted", color))
            held = [
                (getattr(p, what), 100 * (p.measured / p.predicted - 1))
                for p in fit.held_out
                if p.form == "parametric"
            ]
            if held:
                marks.append(
                    Marks(
                        held, f"{family}, held out and predicted from the smaller", color, "rings"
                    )
                )
        title, exact = "measured over predicted loss", what == "flops"
        panels.append(
            Panel(title, label, "percent", marks, y_kind="linear", scientific=exact, zero=True)
        )
    return draw_panels("Residuals of the parametric law", panels) if panels[0].marks else None


def intervals(fits: Fits) -> str | None:
    """The parameters with their 95 % intervals, a panel a parameter and a row a family."""
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
            color = list(fits).index(family)
            value = fit.law.parameters_exponent if name == "a" else getattr(fit.law, name)
            marks.append(
                Marks(
                    ranges=[(row, fit.intervals[name].low, fit.intervals[name].high)], color=color
                )
            )
            marks.append(Marks([(value, row)], family, color))
        rows = tuple(known)
        panels.append(Panel(name, meaning, "", marks, x_kind="linear", y_kind="linear", rows=rows))
    return draw_panels("Parameters and their 95 % intervals", panels, height=120 + 34 * len(known))


def _computes(fit: LadderFit) -> list[tuple[float, float]]:
    """Computes along the ladder as they were counted, and as 6ND, which a law's optimum is stated in."""
    ratio = float(np.median(fit.rungs.flops / (fit.rungs.parameters * fit.rungs.tokens)))
    counted = np.geomspace(fit.rungs.flops.min(), fit.rungs.flops.max(), _LINE_POINTS)
    return [(float(c), float(c * FLOPS_PER_PARAMETER_TOKEN / ratio)) for c in counted]


def _line_of(curve: IsoFlopCurve) -> list[tuple[float, float]]:
    step = max(1, len(curve.line_parameters) // _DRAWN_POINTS)
    pairs = zip(
        map(float, curve.line_parameters[::step]), map(float, curve.line_loss[::step]), strict=True
    )
    return list(pairs)
