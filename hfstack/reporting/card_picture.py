"""The curves of a chain of runs as one SVG that stands alone: a model card has neither style sheet nor script."""

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape

from hfstack.drawing.curves import Axis, Chart, linear_axis, log_axis, smooth, tick_texts
from hfstack.reporting.charts import charts
from hfstack.reporting.runs import Report

_WIDTH, _HEIGHT, _GAP = 400, 230, 20  # of one plot
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 40, 34
_COLORS = ("#2a7f9e", "#c8643c", "#5b8c5a", "#8a6fae", "#b08900", "#a34a6e", "#4f6d7a", "#7a5c3e")
_COLUMNS = 2
_PLOTS_OF_THE_LAST = 4
_LOSS_OF_TOKENS = frozenset({"pretrain_clm", "pretrain_mlm", "sft"})
# What a reader asks of a run first; the learning rate and the clocks come last.
_FIRST = (
    "reward",
    "kl",
    "accuracy",
    "completions mean length",
    "loss",
    "perplexity",
    "bits per byte",
)
_LATER = (
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
        reports: in the order in which they ran; the last one gets four plots, each one before it a single plot.
    """
    trained = [report for report in reports if report.history]
    plots: list[tuple[str, Chart]] = []
    for report in trained:
        made = [chart for chart in charts([report], "c") if _drawable(chart)]
        made = [chart for chart in made if _varies(chart)] or made
        made.sort(key=lambda chart: _rank(chart.title))
        wanted = _PLOTS_OF_THE_LAST if report is trained[-1] else 1
        if (
            made and made[0].title == "Reward"
        ):  # beside it the loss of a reinforced model says nothing
            made = [chart for chart in made if chart.title != "Loss"]
        plots += [(report.record.recipe, chart) for chart in made[:wanted]]
    if not plots:
        return None
    rows = math.ceil(len(plots) / _COLUMNS)
    width = _COLUMNS * _WIDTH + (_COLUMNS + 1) * _GAP if len(plots) > 1 else _WIDTH + 2 * _GAP
    height = rows * _HEIGHT + (rows + 1) * _GAP
    placed = []
    for index, (recipe, chart) in enumerate(plots):
        x = _GAP + index % _COLUMNS * (_WIDTH + _GAP)
        y = _GAP + index // _COLUMNS * (_HEIGHT + _GAP)
        placed.append(f'<g transform="translate({x} {y})">{_plot(recipe, chart)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" font-family="system-ui, sans-serif" font-size="12" fill="#444">'
        f"<title>Curves of {escape(', '.join(dict.fromkeys(recipe for recipe, _ in plots)))}</title>"
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(placed)}</svg>\n'
    )


def _rank(title: str) -> int:
    """Smaller comes first; sorting keeps the report's own order among equals."""
    lower = title.lower()
    if lower in _FIRST:
        return _FIRST.index(lower) - len(_FIRST)
    return 1 if lower.startswith(_LATER) else 0


def _varies(chart: Chart) -> bool:
    return len({value for line in chart.series for _, value in line.points}) > 1


def _drawable(chart: Chart) -> bool:
    return any(math.isfinite(value) for line in chart.series for _, value in line.points)


def _plot(recipe: str, chart: Chart) -> str:
    """One chart in its own coordinates: heading, grid, axes and lines, with a name beside each of several lines."""
    points = [
        (step, value)
        for line in chart.series
        for step, value in line.points
        if math.isfinite(value)
    ]
    steps, values = [step for step, _ in points], [value for _, value in points]
    x = linear_axis(0, max(steps) or 1, ticks=5, snug=True)
    falls_far = "y" in chart.log_axes and min(values) > 0 and max(values) > 4 * min(values)
    low = min(0.0, *values) if chart.from_zero else min(values)
    y = log_axis(min(values), max(values)) if falls_far else linear_axis(low, max(values))
    parts = [
        f'<text x="0" y="14" font-weight="600" fill="#222">{escape(recipe)}: {escape(chart.title)}</text>'
    ]
    if chart.unit and (chart.title != "Loss" or recipe in _LOSS_OF_TOKENS):
        parts.append(f'<text x="0" y="30">{escape(chart.unit)}</text>')
    for tick, text in zip(y.ticks, tick_texts(y), strict=True):
        height = f"{_down(y, tick):.1f}"
        parts.append(f'<path d="M{_LEFT} {height}H{_WIDTH - _RIGHT}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{height}" dy="4" text-anchor="end">{text}</text>')
    whole = replace(
        x, ticks=[tick for tick in x.ticks if float(tick).is_integer()]
    )  # half a step is none
    for tick, text in zip(whole.ticks, tick_texts(whole), strict=True):
        parts.append(
            f'<text x="{_across(x, tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{text}</text>'
        )
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">step</text>')
    for index, line in enumerate(chart.series):
        color = _COLORS[line.color % len(_COLORS)]
        finite = [point for point in line.points if math.isfinite(point[1])]
        if not finite:
            continue
        dashes = ' stroke-dasharray="5 4"' if line.held_out else ""
        faint = ' stroke-opacity="0.25"' if line.smoothed else ""
        look = f'fill="none" stroke="{color}" stroke-width'
        parts.append(f'<path d="{_path(finite, x, y)}" {look}="1.5"{dashes}{faint}/>')
        if line.smoothed:
            drawn = [point for point in smooth(line.points) if math.isfinite(point[1])]
            parts.append(f'<path d="{_path(drawn, x, y)}" {look}="2"/>')
        if len(finite) <= 12:
            parts += [
                f'<circle cx="{_across(x, step):.1f}" cy="{_down(y, value):.1f}" r="2.5" fill="{color}"/>'
                for step, value in finite
            ]
        if len(chart.series) > 1:
            place = _WIDTH - _RIGHT - 70 * (len(chart.series) - 1 - index)
            parts.append(
                f'<text x="{place}" y="30" text-anchor="end" fill="{color}">{escape(line.label)}</text>'
            )
    return "".join(parts)


def _path(points: Sequence[tuple[int, float]], x: Axis, y: Axis) -> str:
    return "M" + "L".join(
        f"{_across(x, step):.1f} {_down(y, value):.1f}"
        for step, value in points
        if value > 0 or not y.log
    )


def _across(x: Axis, step: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * x.position(step)


def _down(y: Axis, value: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - y.position(value))
