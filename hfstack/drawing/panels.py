"""Draw points, lines and columns, in rows of panels in one SVG with one legend."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hfstack.drawing.axes import Axis, format_ticks, linear_axis, log_axis, spread_labels
from hfstack.drawing.html import Html
from hfstack.drawing.numbers import power
from hfstack.drawing.svg import (
    COLORS,
    FAINT,
    INK,
    draw_box,
    draw_dot,
    draw_line,
    draw_picture,
    draw_polyline,
    draw_text,
    move,
    text_width,
)

# Pixels of a panel around its plot, and of one row of the legend.
_LEFT, _RIGHT, _TOP, _BOTTOM, _LEGEND = 58, 16, 34, 44, 20
_NAME_HEIGHT = 13
_MANY_DOTS = 60  # from here on they are drawn smaller

Point = tuple[float, float]
Style = Literal["dots", "rings", "line", "dashed", "faint"]
AxisKind = Literal["log", "linear", "loss", "from_zero", "steps", "share"]


@dataclass(frozen=True)
class Marks:
    """Points, a line, ranges or columns of one colour.

    Args:
        points: (x, y), drawn where both are finite.
        label: in the legend; marks of one label share an entry, and "" has none.
        color: counts from 0, or a colour of its own.
        style: of the points: `dots`, `rings` (hollow), or a line through them: `line`, `dashed` or
            `faint` (what was logged, behind its smoothed form).
        radii: of the dots in pixels, one a point; by default all are equal.
        ranges: (x, low, high), each an upright line; (row, low, high), lying, in a panel of rows.
        columns: (left, right, height), each a box on y = 0.
        name: shown at the last point.
    """

    points: Sequence[Point] = ()
    label: str = ""
    color: int | str = 0
    style: Style = "dots"
    radii: Sequence[float] = ()
    ranges: Sequence[tuple[float, float, float]] = ()
    columns: Sequence[tuple[float, float, float]] = ()
    name: str = ""

    @property
    def is_line(self) -> bool:
        return self.style in ("line", "dashed", "faint")

    @property
    def css_color(self) -> str:
        return self.color if isinstance(self.color, str) else COLORS[self.color % len(COLORS)]


@dataclass(frozen=True)
class Panel:
    """One plot.

    Args:
        x_kind, y_kind: `log`, `linear`, `from_zero` (linear), `steps` (from 0, ticks at whole
            numbers), `share` (0 to 1), or `loss`: logarithmic with ticks at round differences, for
            narrow ranges.
        scientific: write the ticks of x as powers of ten, as FLOPs are.
        zero: draw a line at y = 0.
        rows: names of whole y values from 0, instead of numbers.
    """

    title: str
    x_label: str
    y_label: str
    marks: list[Marks] = field(default_factory=list)
    x_kind: AxisKind = "log"
    y_kind: AxisKind = "log"
    scientific: bool = False
    zero: bool = False
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Plot:
    """The part of a panel inside its axes: where values lie, in pixels."""

    left: float
    right: float
    bottom: float
    x: Axis
    y: Axis

    def place(self, point: Point) -> Point:
        return self.across(point[0]), self.down(point[1])

    def across(self, value: float) -> float:
        return self.left + (self.right - self.left) * self.x.position(value)

    def down(self, value: float) -> float:
        return self.bottom - (self.bottom - _TOP) * self.y.position(value)


def draw_panels(
    title: str,
    panels: Sequence[Panel],
    *,
    width: float = 1080,
    height: float = 330,
    columns: int | None = None,
) -> str:
    """Return an SVG of panels, with one legend under them.

    Args:
        width: of the picture.
        height: of one row of panels.
        columns: panels a row; by default all are side by side.
    """
    columns = columns or len(panels)
    each = width / columns
    drawn = [
        move(each * (index % columns), height * (index // columns), _draw_panel(one, each, height))
        for index, one in enumerate(panels)
    ]

    top = height * math.ceil(len(panels) / columns)
    legend, rows = _draw_legend([marks for panel in panels for marks in panel.marks], width, top)
    whole = top + _LEGEND * rows + (6 if rows else 0)
    return draw_picture(title, [drawn, legend], width=width, height=whole)


def _draw_panel(panel: Panel, width: float, height: float) -> list[Html]:
    """Return the axes and the marks of one panel."""
    spots = list(_every_spot(panel))
    if not spots:
        heading = draw_text(_LEFT, _TOP - 12, panel.title, weight="600")
        return [heading, draw_text(_LEFT, height / 2, "nothing to draw")]

    x = _make_axis([spot[0] for spot in spots], panel.x_kind)
    y = _make_axis([spot[1] for spot in spots], panel.y_kind)
    if panel.rows:  # half a row of space above and below
        y = Axis(-0.6, len(panel.rows) - 0.4, [])
    left = _LEFT + max((0.82 * text_width(row) for row in panel.rows), default=0)
    plot = _Plot(left, width - _RIGHT, height - _BOTTOM, x, y)

    parts = _draw_axes(panel, plot)
    for marks in panel.marks:
        parts += _draw_marks(marks, plot, lying=bool(panel.rows))
    return parts + _draw_names(panel.marks, plot)


def _draw_axes(panel: Panel, plot: _Plot) -> list[Html]:
    """Return the heading, the grid with its numbers, and what the axes mean."""
    left, right, bottom = plot.left, plot.right, plot.bottom
    parts = [draw_text(left, _TOP - 12, panel.title, weight="600")]

    # upright grid lines with the numbers of x under them
    x_texts = [power(f"{tick:.0e}") for tick in plot.x.ticks]
    if not panel.scientific:
        x_texts = format_ticks(plot.x)
    for tick, text in zip(plot.x.ticks, x_texts, strict=True):
        at = plot.across(tick)
        parts.append(draw_line((at, _TOP), (at, bottom), FAINT))
        parts.append(draw_text(at, bottom + 17, text, anchor="middle"))

    # lying grid lines with the numbers of y beside them, or the names of rows
    y_texts = format_ticks(plot.y) if plot.y.ticks else []
    for tick, text in zip(plot.y.ticks, y_texts, strict=True):
        at = plot.down(tick)
        parts.append(draw_line((left, at), (right, at), FAINT))
        parts.append(draw_text(left - 7, at + 4, text, anchor="end"))
    for row, name in enumerate(panel.rows):
        parts.append(draw_text(left - 7, plot.down(row) + 4, name, anchor="end"))

    # the axes themselves
    if panel.zero and plot.y.low < 0 < plot.y.high:
        parts.append(draw_line((left, plot.down(0)), (right, plot.down(0)), INK))
    parts.append(draw_line((left, bottom), (right, bottom), INK))
    parts.append(draw_text((left + right) / 2, bottom + 36, panel.x_label, anchor="middle"))
    middle = (_TOP + bottom) / 2
    parts.append(draw_text(13, middle, panel.y_label, anchor="middle", rotate=-90))
    return parts


def _draw_marks(marks: Marks, plot: _Plot, *, lying: bool) -> list[Html]:
    """Return the shapes of some marks.

    Args:
        lying: ranges go from left to right, in the row that their first number names.
    """
    color = marks.css_color
    parts = []

    # columns and ranges
    for left, right, height in marks.columns:
        x, y = plot.place((left, height))
        wide, tall = plot.across(right) - x, plot.down(0) - y
        parts.append(draw_box(x, y, 0.96 * wide, tall, color, opacity=0.5))
    for at, low, high in marks.ranges:
        start, end = ((low, at), (high, at)) if lying else ((at, low), (at, high))
        parts.append(draw_line(plot.place(start), plot.place(end), color, width=2))

    # points, or a line through them
    shown = [index for index, point in enumerate(marks.points) if _is_finite(point)]
    spots = [plot.place(marks.points[index]) for index in shown]
    if marks.is_line and spots:
        opacity = 0.25 if marks.style == "faint" else None
        dashed = marks.style == "dashed"
        parts.append(draw_polyline(spots, color, dashed=dashed, opacity=opacity))
    elif spots:
        usual = 3 if len(spots) > _MANY_DOTS else 4
        radii = [marks.radii[index] if marks.radii else usual for index in shown]
        hollow = marks.style == "rings"
        parts += [
            draw_dot(x, y, color, radius=radius, hollow=hollow, opacity=0.75)
            for (x, y), radius in zip(spots, radii, strict=True)
        ]
    return parts


def _draw_names(every: list[Marks], plot: _Plot) -> list[Html]:
    """Return the names of marks at their last points, moved apart if they overlap."""

    def height(marks: Marks) -> float:
        return plot.y.position(marks.points[-1][1])

    named = sorted((marks for marks in every if marks.name and marks.points), key=height)
    tall = plot.bottom - _TOP
    heights = spread_labels([height(marks) for marks in named], gap=_NAME_HEIGHT / tall)

    parts = []
    for marks, place in zip(named, heights, strict=True):
        x, y = plot.across(marks.points[-1][0]) - 4, plot.bottom - tall * place - 4
        parts.append(draw_text(x, y, marks.name, anchor="end", color=marks.css_color))
    return parts


def _draw_legend(every: list[Marks], width: float, top: float) -> tuple[list[Html], int]:
    """Return one entry a label, and in how many rows they are."""
    entries: dict[str, Marks] = {}
    for marks in every:
        if marks.label:
            entries.setdefault(marks.label, marks)

    parts, left, row = [], float(_LEFT), 0
    for label, marks in entries.items():
        wide = 30 + text_width(label)
        if left + wide > width and left > _LEFT:
            left, row = float(_LEFT), row + 1
        middle = top + _LEGEND * row + 8

        if marks.is_line:
            ends = [(left, middle), (left + 16, middle)]
            parts.append(draw_polyline(ends, marks.css_color, dashed=marks.style == "dashed"))
        else:
            hollow = marks.style == "rings"
            parts.append(draw_dot(left + 8, middle, marks.css_color, hollow=hollow))
        parts.append(draw_text(left + 21, middle + 4, label))
        left += wide
    return parts, row + 1 if entries else 0


def _every_spot(panel: Panel) -> Iterable[Point]:
    """Yield every point that the axes have to reach."""
    for marks in panel.marks:
        yield from filter(_is_finite, marks.points)
        for at, low, high in marks.ranges:
            yield from ((low, at), (high, at)) if panel.rows else ((at, low), (at, high))
        for left, right, height in marks.columns:
            yield from ((left, 0.0), (right, height))


def _is_finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _make_axis(values: list[float], kind: AxisKind) -> Axis:
    """Return an axis of a kind that reaches all values."""
    low, high = min(values), max(values)
    if kind == "share":
        return Axis(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1])
    if kind == "steps":
        axis = linear_axis(0, high or 1, snug=True)
        return Axis(axis.low, axis.high, [tick for tick in axis.ticks if tick == int(tick)])
    if kind == "log":
        margin = (high / low) ** 0.04 if high > low else 1.5
        return log_axis(low / margin, high * margin, snug=True)

    # Linear: some space above and below, so that no mark lies on the frame.
    margin = (high - low) * 0.05 or abs(low) * 0.05 or 1.0
    if kind == "from_zero" and low >= 0:
        return linear_axis(0, high + margin, snug=True)
    axis = linear_axis(low - margin, high + margin, snug=True)
    if kind == "loss" and axis.low > 0:
        return Axis(axis.low, axis.high, [tick for tick in axis.ticks if tick > 0], log=True)
    return axis
