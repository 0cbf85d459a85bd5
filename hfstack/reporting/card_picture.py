"""Draw the curves of a chain of runs as one SVG that stands alone.

A model card has neither style sheet nor script.
"""

import math
from collections.abc import Sequence

from hfstack.drawing.curves import Chart, Series
from hfstack.drawing.panels import AxisKind, Marks, Panel, draw_panels
from hfstack.drawing.smoothing import Points, smooth, thin_out
from hfstack.reporting.charts import make_charts
from hfstack.reporting.runs import Report

_WIDTH, _HEIGHT = 420, 250  # of one plot
_PLOTS_ABREAST = 2
_PLOTS_OF_THE_LAST = 4
_DOTS_UP_TO_POINTS = 12
# What a reader asks of a run first; the learning rate and the clocks come last.
_FIRST_TITLES = (
    "reward",
    "kl",
    "accuracy",
    "length",
    "loss",
    "perplexity",
    "bits per byte",
)
_LATER_TITLES = (
    "learning rate",
    "throughput",
    "model-flops",
    "gradient norm",
    "num tokens",
    "clip ratio",
    "frac",
    "step time",
)


def chain_picture(reports: Sequence[Report]) -> str | None:
    """Return the SVG of what these runs logged, or None when none of them trained.

    Args:
        reports: in the order in which they ran; the last one gets four plots, each one before it a
            single plot.
    """
    trained = [report for report in reports if report.history]
    panels = []
    for report in trained:
        wanted = _PLOTS_OF_THE_LAST if report is trained[-1] else 1
        panels += [
            _make_panel(report.record.recipe, chart)
            for chart in _most_telling(make_charts([report], "c"))[:wanted]
        ]
    if not panels:
        return None

    recipes = dict.fromkeys(report.record.recipe for report in trained)
    columns = min(_PLOTS_ABREAST, len(panels))
    return draw_panels(
        f"Curves of {', '.join(recipes)}",
        panels,
        width=_WIDTH * columns,
        height=_HEIGHT,
        columns=columns,
    )


def _most_telling(made: list[Chart]) -> list[Chart]:
    """Return the charts that can be drawn, those first that a reader asks for first."""
    made = [chart for chart in made if _finite_values(chart)]
    made = [chart for chart in made if len(_finite_values(chart)) > 1] or made
    made = sorted(made, key=lambda chart: _title_rank(chart.title))

    # Beside its reward, the loss of a policy says nothing.
    if made and made[0].title == "Reward":
        made = [chart for chart in made if chart.title != "Loss"]
    return made


def _title_rank(title: str) -> int:
    """Return a rank, smaller first; sorting keeps the report's own order among equals."""
    lower = title.lower()
    if lower in _FIRST_TITLES:
        return _FIRST_TITLES.index(lower) - len(_FIRST_TITLES)
    return 1 if lower.startswith(_LATER_TITLES) else 0


def _finite_values(chart: Chart) -> set[float]:
    values = (value for line in chart.series for _, value in line.points)
    return {value for value in values if math.isfinite(value)}


def _make_panel(recipe: str, chart: Chart) -> Panel:
    """Return one chart as a panel, on a logarithmic axis where its values fall far."""
    values = _finite_values(chart)
    falls_far = "y" in chart.log_axes and min(values) > 0 and max(values) > 4 * min(values)
    y_kind: AxisKind = "log" if falls_far else "from_zero" if chart.from_zero else "linear"
    if chart.is_share and min(values) >= 0 and max(values) <= 1:
        y_kind = "share"

    marks = [part for line in chart.series for part in _make_marks(line, log=falls_far)]
    title = f"{recipe}: {chart.title}"
    return Panel(title, "step", chart.unit, marks, x_kind="steps", y_kind=y_kind)


def _make_marks(line: Series, *, log: bool) -> list[Marks]:
    """Return a line: faint under its smoothed form if noisy, with dots if few."""

    def drawable(points: Points) -> Points:
        return [
            (step, value)
            for step, value in points
            if math.isfinite(value) and (value > 0 or not log)
        ]

    points = thin_out(drawable(line.points))
    if line.smoothed:
        smoothed = drawable(smooth(line.points))
        return [
            Marks(points, color=line.color, style="faint"),
            Marks(smoothed, line.label, line.color, "line"),
        ]

    style = "dashed" if line.held_out else "line"
    dots = points if len(points) <= _DOTS_UP_TO_POINTS else []
    return [Marks(points, line.label, line.color, style), Marks(dots, color=line.color)]
