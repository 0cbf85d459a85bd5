"""Curves as HTML: a stretched SVG for the lines, text in HTML around it, so that labels keep their size at any width.

Positions run from 0 to 1 (left to right, bottom to top) and are written as percent of the plot. `Chart.data` is what
the page's script reads out under the pointer: the values as they were logged.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hfstack.drawing.html import Html, tag
from hfstack.drawing.numbers import compact, number, power

Points = list[tuple[int, float]]

SMOOTH_FROM_POINTS = 25
_MARKED_UP_TO_POINTS = 40
_DRAWN_POINTS = 1500
_SMOOTHED_POINTS = 500
_LABEL_GAP = 0.085  # of the plot's height: one line of text


@dataclass(frozen=True)
class Series:
    """One line: `points` as logged, in order of step.

    Args:
        name: what stands beside the end of the line, if not the label.
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
        return self.noisy and not self.held_out and len(self.points) >= SMOOTH_FROM_POINTS


@dataclass(frozen=True)
class Chart:
    """A figure of several series over the training steps.

    Args:
        identifier: names the chart in the page and in its data.
        log_axes: the axes that the reader may switch to a logarithm: "", "y" or "xy".
        from_zero: whether the vertical axis starts at 0.
        restarts: (step, colour) of each continuation from a checkpoint.
    """

    identifier: str
    title: str
    unit: str
    series: list[Series]
    log_axes: str = ""
    from_zero: bool = False
    restarts: list[tuple[int, int]] = field(default_factory=list)

    @property
    def data(self) -> dict[str, Any]:
        """The logged values, as JSON can hold them: what is not finite is null."""
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
class Axis:
    """A range of values, linear or logarithmic, with its ticks."""

    low: float
    high: float
    ticks: list[float]
    log: bool = False

    def position(self, value: float) -> float:
        """Return where a value lies, 0 at `low` and 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(low: float, high: float, *, ticks: int = 5, snug: bool = False) -> Axis:
    """Return an axis with ticks at 1, 2 or 5 times a power of ten.

    Args:
        ticks: about how many.
        snug: end the axis at the values themselves, not at the next tick.
    """
    if low == high:
        margin = abs(low) / 2 or 1.0
        low, high = (low, high + margin) if snug else (low - margin, high + margin)
    step = 10 ** math.floor(math.log10((high - low) / ticks))
    step *= next(nice for nice in (1, 2, 5, 10) if nice * step * ticks >= (high - low) * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = [round(n * step, 12 - math.floor(math.log10(step))) for n in range(first, last + 1)]
    if snug:
        return Axis(
            low,
            high,
            [value for value in values if low - step * 1e-6 <= value <= high + step * 1e-6],
        )
    return Axis(values[0], values[-1], values)


def log_axis(low: float, high: float, *, snug: bool = False) -> Axis:
    """Return a logarithmic axis over positive values, with ticks at powers of ten, at 1-2-5, or finer if short."""
    if low == high:
        low, high = low / 2, high * 2
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    fine = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    for mantissas in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), fine):
        ticks = [float(f"{m}e{decade}") for decade in decades for m in mantissas]
        inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(inside) >= 4:
            break
    if snug:
        return Axis(low, high, inside, log=True)
    below = max((tick for tick in ticks if tick <= low * 1.001), default=low)
    above = min((tick for tick in ticks if tick >= high * 0.999), default=high)
    return Axis(below, above, sorted({below, *inside, above}), log=True)


def smooth(points: Points) -> Points:
    """Return the curve fitted by local straight lines, so that it neither lags nor flattens the steep beginning.

    Each value is read off a line fitted to its neighbours with tricube weights (Cleveland, 1979). Long curves are
    averaged in stretches first.
    """
    points = _averaged(points)
    widest = max(3, len(points) // 16)
    finite = [math.isfinite(value) for _, value in points]
    smoothed: Points = []
    for index, (step, value) in enumerate(points):
        if not finite[index]:
            smoothed.append((step, value))
            continue
        reach = min(widest, 1 + index // 3)  # a loss falls fastest at first
        near = range(max(0, index - reach), min(len(points), index + reach + 1))
        weights = {n: (1 - (abs(n - index) / (reach + 1)) ** 3) ** 3 for n in near if finite[n]}
        total = sum(weights.values())
        mean_x = sum(w * points[n][0] for n, w in weights.items()) / total
        mean_y = sum(w * points[n][1] for n, w in weights.items()) / total
        spread_x = sum(w * (points[n][0] - mean_x) ** 2 for n, w in weights.items())
        product = sum(
            w * (points[n][0] - mean_x) * (points[n][1] - mean_y) for n, w in weights.items()
        )
        smoothed.append(
            (step, mean_y + (product / spread_x * (step - mean_x) if spread_x else 0.0))
        )
    return smoothed


def _averaged(points: Points) -> Points:
    """At most about `_SMOOTHED_POINTS` means of neighbouring points; NaN stays NaN."""
    stretch = math.ceil(len(points) / _SMOOTHED_POINTS)
    parts = [points[start : start + stretch] for start in range(0, len(points), stretch)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def draw(chart: Chart) -> Html:
    """Return the figure of a chart: its linear plot and, when it may be switched, the logarithmic one."""
    positive = all(
        value > 0 for line in chart.series for _, value in line.points if math.isfinite(value)
    )
    log_axes = chart.log_axes if positive else ""
    toggle = None
    if log_axes:
        name = "log scale" if log_axes == "y" else "log axes"
        toggle = tag(
            "label.switch",
            tag("input", {"type": "checkbox", "class": "log-switch"}),
            tag("span", name),
        )
    heading = tag(
        "figcaption",
        tag("h4", chart.title),
        tag("span.unit", chart.unit) if chart.unit else None,
        toggle,
    )
    plots = [_plot(chart, "")] + ([_plot(chart, log_axes)] if log_axes else [])
    return tag(
        "figure.chart" + ("" if len(chart.series) > 1 else ".alone"),
        {"data-chart": chart.identifier},
        heading,
        plots,
    )


def _plot(chart: Chart, log_axes: str) -> Html:
    """The plot on one kind of axes."""
    drawn = [
        line for line in chart.series if any(_drawable(point, log_axes) for point in line.points)
    ]
    points = [point for line in drawn for point in line.points if _drawable(point, log_axes)]
    x = _x_axis(
        [step for step, _ in points] + [step for step, _ in chart.restarts], log="x" in log_axes
    )
    values = [value for _, value in points]
    if "y" in log_axes:
        y = log_axis(min(values), max(values))
    else:
        y = linear_axis(min(0.0, *values) if chart.from_zero else min(values), max(values))

    paths = [
        _restart(x, step, color) for step, color in chart.restarts if not (x.log and step < x.low)
    ]
    few = all(len(line.points) <= _MARKED_UP_TO_POINTS for line in drawn if line.held_out)
    for line in drawn:
        paths += _paths(line, x, y, log_axes, dots=few and line.held_out)
    area = tag(
        "svg",
        {"viewBox": "0 0 1000 1000", "preserveAspectRatio": "none", "aria-hidden": "true"},
        _grid(y),
        paths,
    )
    attributes = {
        "tabindex": "0",
        "role": "img",
        "aria-label": _summary(chart, drawn),
        "data-x": f"{x.low!r},{x.high!r}",
        "data-y": f"{y.low!r},{y.high!r}",
        "data-log": log_axes,
    }
    return tag(
        "div.plot." + ("logarithmic" if log_axes else "linear"),
        tag(
            "div.area",
            attributes,
            area,
            _y_labels(y),
            _x_labels(x),
            _end_labels(drawn, x, y, log_axes),
        ),
    )


def _x_axis(steps: list[int], *, log: bool) -> Axis:
    """Steps from the first to the last; from 0 on a linear axis."""
    if log:
        positive = [step for step in steps if step > 0]
        return log_axis(min(positive), max(positive), snug=True)
    return linear_axis(0, max(steps), ticks=6, snug=True)


def _drawable(point: tuple[int, float], log_axes: str) -> bool:
    step, value = point
    return (
        math.isfinite(value)
        and ("x" not in log_axes or step > 0)
        and ("y" not in log_axes or value > 0)
    )


def _grid(y: Axis) -> list[Html]:
    return [
        tag("path.grid" + (".zero" if tick == y.low else ""), {"d": f"M0 {_down(y, tick)}H1000"})
        for tick in y.ticks
    ]


def _paths(line: Series, x: Axis, y: Axis, log_axes: str, *, dots: bool) -> list[Html]:
    """The raw and the smoothed line, or the line and its dots."""
    color = f"c{line.color}"
    raw = tag(
        f"path.line.{color}" + (".raw" if line.smoothed else ".dashed" if line.held_out else ""),
        {"d": _trace(line.points, x, y, log_axes)},
    )
    parts = [raw]
    if line.smoothed:
        parts.append(tag(f"path.line.{color}", {"d": _trace(smooth(line.points), x, y, log_axes)}))
    drawable = [point for point in line.points if _drawable(point, log_axes)]
    if dots or len(drawable) == 1:
        # a line of no length with round ends is a dot that keeps its shape when the SVG is stretched
        marks = "".join(f"M{_across(x, step)} {_down(y, value)}h0" for step, value in drawable)
        parts.append(tag(f"path.dots.{color}", {"d": marks}))
    return parts


def _trace(points: Points, x: Axis, y: Axis, log_axes: str) -> str:
    """The path through the points, broken where a value cannot be drawn."""
    commands: list[str] = []
    pen_down = False
    for point in _thinned(points):
        if not _drawable(point, log_axes):
            pen_down = False
            continue
        commands.append(f"{'L' if pen_down else 'M'}{_across(x, point[0])} {_down(y, point[1])}")
        pen_down = True
    return "".join(commands)


def _thinned(points: Points) -> Iterable[tuple[int, float]]:
    """At most about `_DRAWN_POINTS` points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= _DRAWN_POINTS:
        return points
    stretch = math.ceil(2 * len(points) / _DRAWN_POINTS)
    kept: Points = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        finite = [point for point in part if math.isfinite(point[1])] or part
        ends = {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
        kept += sorted(ends | {point for point in part if not math.isfinite(point[1])})
    return kept


def _restart(x: Axis, step: int, color: int) -> Html:
    title = tag("title", f"continued from the checkpoint of step {step}")
    return tag(
        f"path.restart.c{color}", {"d": f"M{_across(x, step)} 0V1000", "data-step": step}, title
    )


def _y_labels(y: Axis) -> list[Html]:
    texts = tick_texts(y)
    return [
        tag("span.y-tick", {"style": f"top:{100 - 100 * y.position(tick):.2f}%"}, text)
        for tick, text in zip(y.ticks, texts, strict=True)
    ]


def _x_labels(x: Axis) -> list[Html]:
    """The steps under the plot; every other one is `minor` and gives way on a narrow screen."""
    labels = []
    for index, (tick, text) in enumerate(zip(x.ticks, tick_texts(x), strict=True)):
        minor = ".minor" if index % 2 else ""
        labels.append(
            tag(f"span.x-tick{minor}", {"style": f"left:{100 * x.position(tick):.2f}%"}, text)
        )
    return [*labels, tag("span.x-name", "step")]


def tick_texts(axis: Axis) -> list[str]:
    """Return the ticks as text, with one number of decimals for a linear axis."""
    if axis.log:
        return [compact(tick) if abs(tick) >= 1e4 else power(f"{tick:g}") for tick in axis.ticks]
    largest = max(map(abs, axis.ticks))
    if largest >= 1e4:
        return [compact(tick) for tick in axis.ticks]
    if 0 < largest < 1e-2:
        return [_scientific(tick) for tick in axis.ticks]
    gaps = [b - a for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)]
    decimals = max(0, -math.floor(math.log10(min(gaps)) + 1e-9)) if gaps else 0
    return [f"{tick:.{decimals}f}" for tick in axis.ticks]


def _scientific(value: float) -> str:
    """`0.0015` as `1.5e-3`."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def _end_labels(drawn: list[Series], x: Axis, y: Axis, log_axes: str) -> list[Html]:
    """The name of each line beside its last point, one a colour, pushed apart where they would meet.

    A line that ends far from the right edge has none there: the legend names it.
    """
    if len(drawn) < 2:
        return []
    ends: dict[int, tuple[float, Series]] = {}
    for line in drawn:
        shown = smooth(line.points) if line.smoothed else line.points
        step, value = next(point for point in reversed(shown) if _drawable(point, log_axes))
        if line.color not in ends and x.position(step) > 0.9:
            ends[line.color] = (y.position(value), line)
    ordered = sorted(ends.values(), key=lambda end: end[0])
    heights = spread([height for height, _ in ordered])
    return [
        tag(
            f"span.end.c{line.color}",
            {"style": f"top:{100 - 100 * height:.2f}%"},
            line.name or line.label,
        )
        for height, (_, line) in zip(heights, ordered, strict=True)
    ]


def spread(heights: list[float], gap: float = _LABEL_GAP) -> list[float]:
    """Return rising heights moved apart to `gap`: those that meet stand around where they met, within 0 and 1."""
    clusters: list[list[float]] = []  # each holds the heights that its members asked for
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1 and _lowest(clusters[-1], gap) - _highest(clusters[-2], gap) < gap:
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [_lowest(members, gap) + gap * n for members in clusters for n in range(len(members))]


def _lowest(members: list[float], gap: float) -> float:
    """Where the lowest label of a cluster goes, when the cluster is centred on what its members asked for."""
    span = gap * (len(members) - 1)
    return max(0.0, min(sum(members) / len(members) - span / 2, 1.0 - span))


def _highest(members: list[float], gap: float) -> float:
    return _lowest(members, gap) + gap * (len(members) - 1)


def _summary(chart: Chart, drawn: list[Series]) -> str:
    """What a screen reader says: each line's first and last value."""
    parts = []
    for line in drawn:
        finite = [(step, value) for step, value in line.points if math.isfinite(value)]
        (first, start), (last, end) = finite[0], finite[-1]
        parts.append(f"{line.label} {number(start)} at step {first}, {number(end)} at step {last}")
    return f"{chart.title}: {'; '.join(parts)}"


def _across(x: Axis, step: float) -> str:
    return f"{1000 * x.position(step):.1f}".removesuffix(".0")


def _down(y: Axis, value: float) -> str:
    return f"{1000 - 1000 * y.position(value):.1f}".removesuffix(".0")
