"""Draw curves for a page: a stretched SVG for the lines, text in HTML around it.

So labels keep their size at any width. Positions run from 0 to 1 (left to right, bottom to top) and
become percent of the plot. `Chart.data` is what the page's script shows under the pointer: the
values as they were logged.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from hfstack.drawing.axes import Axis, format_ticks, linear_axis, log_axis, spread_labels
from hfstack.drawing.html import Html, tag
from hfstack.drawing.numbers import number
from hfstack.drawing.smoothing import Points, smooth, thin_out

_SMOOTH_FROM_POINTS = 25
_MARKED_UP_TO_POINTS = 40
_VIEW_BOX = 1000  # units of the SVG across and down, whatever its size on the screen
_LABEL_GAP = 0.085  # of the plot's height: one line of text


@dataclass(frozen=True)
class Series:
    """One line: `points` as logged, in order of step.

    Args:
        name: shown beside the end of the line, if not the label.
        color: counts from 0.
        held_out: drawn with dashes, and dots when they are few.
        noisy: drawn faintly under its smoothed form when there are enough points.
    """

    label: str
    points: Points
    color: int = 0
    held_out: bool = False
    name: str = ""
    noisy: bool = True

    @property
    def smoothed(self) -> bool:
        return self.noisy and not self.held_out and len(self.points) >= _SMOOTH_FROM_POINTS


@dataclass(frozen=True)
class Chart:
    """A figure of several series over the training steps.

    Args:
        identifier: names the chart in the page and in its data.
        log_axes: the axes that the reader may switch to a logarithm: "", "y" or "xy".
        from_zero: whether the vertical axis starts at 0.
        is_share: whether the values are shares, whose axis is all of 0 to 1.
        restarts: (step, colour) of each continuation from a checkpoint.
    """

    identifier: str
    title: str
    unit: str
    series: list[Series]
    log_axes: str = ""
    from_zero: bool = False
    is_share: bool = False
    restarts: list[tuple[int, int]] = field(default_factory=list)

    @property
    def data(self) -> dict[str, Any]:
        """Return the logged values as JSON can hold them: what is not finite is null."""
        return {
            "unit": self.unit,
            "series": [
                {
                    "label": line.label,
                    "color": line.color,
                    "x": [step for step, _ in line.points],
                    "y": [value if math.isfinite(value) else None for _, value in line.points],
                }
                for line in self.series
            ],
        }


@dataclass(frozen=True)
class _Axes:
    """The two axes of a plot, and where values lie between them."""

    x: Axis
    y: Axis

    def can_show(self, point: tuple[int, float]) -> bool:
        """Return whether a point has a place on these axes; zero has none on a log axis."""
        return self.x.can_show(point[0]) and self.y.can_show(point[1])

    def place(self, point: tuple[int, float]) -> str:
        """Return a point in the SVG's units."""
        return f"{self.across(point[0])} {self.down(point[1])}"

    def across(self, step: float) -> str:
        return f"{_VIEW_BOX * self.x.position(step):.1f}".removesuffix(".0")

    def down(self, value: float) -> str:
        return f"{_VIEW_BOX - _VIEW_BOX * self.y.position(value):.1f}".removesuffix(".0")


def draw_chart(chart: Chart) -> Html:
    """Return a chart's figure: its plot, and a logarithmic one that a switch shows."""
    values = [value for line in chart.series for _, value in line.points if math.isfinite(value)]
    log_axes = chart.log_axes if all(value > 0 for value in values) else ""
    switch = None
    if log_axes:
        name = "log scale" if log_axes == "y" else "log axes"
        box = tag("input", {"type": "checkbox", "class": "log-switch"})
        switch = tag("label.switch", box, tag("span", name))

    unit = tag("span.unit", chart.unit) if chart.unit else None
    heading = tag("figcaption", tag("h4", chart.title), unit, switch)
    plots = [_draw_plot(chart, axes) for axes in dict.fromkeys(("", log_axes))]
    selector = "figure.chart" if len(chart.series) > 1 else "figure.chart.alone"
    return tag(selector, {"data-chart": chart.identifier}, heading, plots)


def _draw_plot(chart: Chart, log_axes: str) -> Html:
    """Return the plot on linear axes, or on those of `log_axes` logarithmic."""
    axes = _make_axes(chart, log_axes)
    x, y = axes.x, axes.y
    drawn = [line for line in chart.series if any(map(axes.can_show, line.points))]

    # the lines, over the marks of where the run was continued
    paths = [
        _draw_restart(axes, step, color)
        for step, color in chart.restarts
        if not (x.log and step < x.low)
    ]
    few = all(len(line.points) <= _MARKED_UP_TO_POINTS for line in drawn if line.held_out)
    for line in drawn:
        paths += _draw_series(line, axes, dots=few and line.held_out)
    stretched = {
        "viewBox": f"0 0 {_VIEW_BOX} {_VIEW_BOX}",
        "preserveAspectRatio": "none",
        "aria-hidden": "true",
    }
    svg = tag("svg", stretched, _draw_grid(axes), paths)

    # what a screen reader says; what the page's script needs to find the value at the pointer
    attributes = {
        "tabindex": "0",
        "role": "img",
        "aria-label": _summarise(chart, drawn),
        "data-x": f"{x.low!r},{x.high!r}",
        "data-y": f"{y.low!r},{y.high!r}",
        "data-log": log_axes,
    }
    labels = [_label_y_axis(y), _label_x_axis(x), _label_lines(drawn, axes)]
    kind = "logarithmic" if log_axes else "linear"
    return tag(f"div.plot.{kind}", tag("div.area", attributes, svg, labels))


def _make_axes(chart: Chart, log_axes: str) -> _Axes:
    """Return axes that reach every point that can be drawn on them.

    Steps begin at 0 on a linear axis, and at the first step after it on a logarithmic one.
    """
    points = [
        (step, value)
        for line in chart.series
        for step, value in line.points
        if math.isfinite(value)
        and ("x" not in log_axes or step > 0)
        and ("y" not in log_axes or value > 0)
    ]
    values = [value for _, value in points]
    steps = [step for step, _ in points] + [step for step, _ in chart.restarts]

    if "x" in log_axes:
        positive = [step for step in steps if step > 0]
        x = log_axis(min(positive), max(positive), snug=True)
    else:
        x = linear_axis(0, max(steps), ticks=6, snug=True)

    if "y" in log_axes:
        y = log_axis(min(values), max(values))
    elif chart.is_share and min(values) >= 0 and max(values) <= 1:
        y = linear_axis(0, 1)
    else:
        y = linear_axis(min(0.0, *values) if chart.from_zero else min(values), max(values))
    return _Axes(x, y)


def _draw_grid(axes: _Axes) -> list[Html]:
    lines = []
    for tick in axes.y.ticks:
        selector = "path.grid.zero" if tick == axes.y.low else "path.grid"
        lines.append(tag(selector, {"d": f"M0 {axes.down(tick)}H{_VIEW_BOX}"}))
    return lines


def _draw_series(line: Series, axes: _Axes, *, dots: bool) -> list[Html]:
    """Return the raw and the smoothed line, or the line and its dots."""
    color = f"c{line.color}"
    style = ".raw" if line.smoothed else ".dashed" if line.held_out else ""
    parts = [tag(f"path.line.{color}{style}", {"d": _trace(line.points, axes)})]
    if line.smoothed:
        parts.append(tag(f"path.line.{color}", {"d": _trace(smooth(line.points), axes)}))

    shown = list(filter(axes.can_show, line.points))
    if dots or len(shown) == 1:
        # A line of no length with round ends is a dot that stays round when the SVG is stretched.
        marks = "".join(f"M{axes.place(point)}h0" for point in shown)
        parts.append(tag(f"path.dots.{color}", {"d": marks}))
    return parts


def _trace(points: Points, axes: _Axes) -> str:
    """Return the path through the points, broken where a value cannot be drawn."""
    commands: list[str] = []
    command = "M"
    for point in thin_out(points):
        if axes.can_show(point):
            commands.append(f"{command}{axes.place(point)}")
            command = "L"
        else:
            command = "M"
    return "".join(commands)


def _draw_restart(axes: _Axes, step: int, color: int) -> Html:
    title = tag("title", f"continued from the checkpoint of step {step}")
    path = {"d": f"M{axes.across(step)} 0V{_VIEW_BOX}", "data-step": step}
    return tag(f"path.restart.c{color}", path, title)


def _label_y_axis(y: Axis) -> list[Html]:
    return [
        tag("span.y-tick", {"style": f"top:{100 - 100 * y.position(tick):.2f}%"}, text)
        for tick, text in zip(y.ticks, format_ticks(y), strict=True)
    ]


def _label_x_axis(x: Axis) -> list[Html]:
    """Return the steps under the plot; narrow screens leave out the `minor` ones."""
    labels = []
    for index, (tick, text) in enumerate(zip(x.ticks, format_ticks(x), strict=True)):
        selector = "span.x-tick.minor" if index % 2 else "span.x-tick"
        labels.append(tag(selector, {"style": f"left:{100 * x.position(tick):.2f}%"}, text))
    return [*labels, tag("span.x-name", "step")]


def _label_lines(drawn: list[Series], axes: _Axes) -> list[Html]:
    """Return the name of each line beside its last point, one a colour, moved apart.

    A line that ends far from the right edge has none there: the legend names it.
    """
    if len(drawn) < 2:
        return []

    ends: dict[int, tuple[float, Series]] = {}
    for line in drawn:
        shown = smooth(line.points) if line.smoothed else line.points
        step, value = next(point for point in reversed(shown) if axes.can_show(point))
        if line.color not in ends and axes.x.position(step) > 0.9:
            ends[line.color] = (axes.y.position(value), line)

    ordered = sorted(ends.values(), key=lambda end: end[0])
    labels = []
    heights = spread_labels([height for height, _ in ordered], _LABEL_GAP)
    for height, (_, line) in zip(heights, ordered, strict=True):
        style = {"style": f"top:{100 - 100 * height:.2f}%"}
        labels.append(tag(f"span.end.c{line.color}", style, line.name or line.label))
    return labels


def _summarise(chart: Chart, drawn: list[Series]) -> str:
    """Return what a screen reader says: each line's first and last value."""
    parts = []
    for line in drawn:
        finite = [(step, value) for step, value in line.points if math.isfinite(value)]
        (first, start), (last, end) = finite[0], finite[-1]
        parts.append(f"{line.label} {number(start)} at step {first}, {number(end)} at step {last}")
    return f"{chart.title}: {'; '.join(parts)}"
