"""Panels of points and lines on logarithmic or linear axes, side by side in one SVG that stands on its own.

Positions are in pixels of the picture; text is escaped. The report shows such a file as an image, so it carries its own
colours, which are legible on white and told apart by the colour-blind.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hfstack.drawing.curves import Axis, linear_axis, log_axis, spread
from hfstack.drawing.html import Html, join, tag
from hfstack.drawing.numbers import compact, power

COLORS = ("#2a7f9e", "#c8643c", "#5a8f3d", "#8a5aa8", "#b08a1e", "#3c4f9e", "#a83c5f", "#444444")
_INK, _FAINT = "#303030", "#d8d8d8"
_LEFT, _RIGHT, _TOP, _BOTTOM, _LEGEND = 58, 16, 34, 44, 20
_LEGEND_CHARACTER = 6.7  # width of an average letter at 12 pixels

Point = tuple[float, float]
Style = Literal["dots", "rings", "line", "dashed", "bars"]


@dataclass(frozen=True)
class Marks:
    """Points or a line of one colour.

    Args:
        points: (x, y), drawn where both are finite.
        label: in the legend; marks of one label and colour share an entry, and "" has none.
        color: counts from 0, or a colour of its own.
        style: `dots`, `rings` (hollow), `line`, `dashed`, or `bars`: upright, from the low to the high of each.
        bars: (x, low, high) for the style `bars`.
        name: written at the last point.
    """

    points: Sequence[Point] = ()
    label: str = ""
    color: int | str = 0
    style: Style = "dots"
    bars: Sequence[tuple[float, float, float]] = ()
    name: str = ""


@dataclass(frozen=True)
class Panel:
    """One plot.

    Args:
        x_kind, y_kind: `log`, `linear`, or `loss`: logarithmic with ticks at round differences, for narrow ranges.
        scientific: write the ticks of x as powers of ten, as FLOPs are.
        zero: draw a line at y = 0.
        rows: names of whole y values from 0, instead of numbers.
    """

    title: str
    x_label: str
    y_label: str
    marks: list[Marks] = field(default_factory=list)
    x_kind: Literal["log", "linear"] = "log"
    y_kind: Literal["log", "linear", "loss"] = "log"
    scientific: bool = False
    zero: bool = False
    rows: tuple[str, ...] = ()


def draw_panels(
    title: str, panels: Sequence[Panel], *, width: int = 1080, height: int = 330
) -> str:
    """Return an SVG of panels side by side, with one legend under them."""
    each = width / len(panels)
    drawn = [
        tag("g", {"transform": f"translate({each * place:.1f} 0)"}, _draw(panel, each, height))
        for place, panel in enumerate(panels)
    ]
    legend, rows = _legend([marks for panel in panels for marks in panel.marks], width, height)
    total = height + _LEGEND * rows + (6 if rows else 0)
    picture = tag(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {total}",
            "width": width,
            "height": total,
            "role": "img",
            "font-family": "sans-serif",
            "font-size": 12,
        },
        tag("title", title),
        tag("rect", {"width": width, "height": total, "fill": "#ffffff"}),
        drawn,
        legend,
    )
    return f"{picture}\n"


def _draw(panel: Panel, width: float, height: float) -> list[Html]:
    """The axes and the marks of one panel."""
    spots = [*_every_point(panel.marks, sideways=bool(panel.rows))]
    if not spots:
        return [
            _text(_LEFT, _TOP - 12, panel.title, weight="600"),
            _text(_LEFT, height / 2, "nothing to draw"),
        ]
    left = _LEFT + (5.5 * max(map(len, panel.rows)) if panel.rows else 0)
    right, bottom = width - _RIGHT, height - _BOTTOM
    x = _axis([spot[0] for spot in spots], panel.x_kind)
    y = (
        Axis(-0.6, len(panel.rows) - 0.4, [])
        if panel.rows
        else _axis([spot[1] for spot in spots], panel.y_kind)
    )

    def across(value: float) -> float:
        return left + (right - left) * x.position(value)

    def down(value: float) -> float:
        return bottom - (bottom - _TOP) * y.position(value)

    parts = [_text(left, _TOP - 12, panel.title, weight="600")]
    for tick in x.ticks:
        parts.append(_line(across(tick), _TOP, across(tick), bottom, _FAINT))
        words = power(f"{tick:.0e}") if panel.scientific else _tick_text(tick)
        parts.append(_text(across(tick), bottom + 17, words, anchor="middle"))
    for tick in y.ticks:
        parts.append(_line(left, down(tick), right, down(tick), _FAINT))
        parts.append(_text(left - 7, down(tick) + 4, _tick_text(tick), anchor="end"))
    for place, name in enumerate(panel.rows):
        parts.append(_text(left - 7, down(place) + 4, name, anchor="end"))
    if panel.zero and y.low < 0 < y.high:
        parts.append(_line(left, down(0), right, down(0), _INK))
    parts.append(_text((left + right) / 2, bottom + 36, panel.x_label, anchor="middle"))
    parts.append(
        tag(
            "text",
            {
                "transform": f"translate(13 {(_TOP + bottom) / 2:.1f}) rotate(-90)",
                "text-anchor": "middle",
            },
            {"fill": _INK},
            panel.y_label,
        )
    )
    parts.append(_line(left, bottom, right, bottom, _INK))
    for marks in panel.marks:
        parts += _draw_marks(marks, across, down, sideways=bool(panel.rows))
    named = sorted(
        (m for m in panel.marks if m.name and m.points), key=lambda m: y.position(m.points[-1][1])
    )
    heights = spread([y.position(m.points[-1][1]) for m in named], gap=13 / (bottom - _TOP))
    for marks, place in zip(named, heights, strict=True):
        spot = bottom - (bottom - _TOP) * place + 4
        parts.append(
            _text(
                across(marks.points[-1][0]) - 4,
                spot - 8,
                marks.name,
                anchor="end",
                color=_color(marks),
            )
        )
    return parts


def _draw_marks(
    marks: Marks,
    across: Callable[[float], float],
    down: Callable[[float], float],
    *,
    sideways: bool,
) -> list[Html]:
    color = _color(marks)
    if marks.style == "bars":
        parts = []
        for at, low, high in marks.bars:
            ends = (across(low), down(at), across(high), down(at)) if sideways else (
                across(at), down(low), across(at), down(high)
            )  # fmt: skip
            parts.append(_line(*ends, color, width=2))
        return parts
    spots = [(across(a), down(b)) for a, b in marks.points if math.isfinite(a) and math.isfinite(b)]
    if marks.style in ("line", "dashed"):
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in spots)
        dashes = {"stroke-dasharray": "6 4"} if marks.style == "dashed" else {}
        return [
            tag("path", {"d": path, "fill": "none", "stroke": color, "stroke-width": 1.8} | dashes)
        ]
    hollow = {"fill": "#ffffff", "stroke": color, "stroke-width": 2}
    filling = hollow if marks.style == "rings" else {"fill": color, "fill-opacity": 0.75}
    size = 3 if len(spots) > 60 else 4
    return [
        tag("circle", {"cx": f"{a:.1f}", "cy": f"{b:.1f}", "r": size} | filling) for a, b in spots
    ]


def _legend(every: list[Marks], width: float, top: float) -> tuple[Html, int]:
    """One entry a label, in rows; returns the entries and the number of rows."""
    entries: dict[str, Marks] = {}
    for marks in every:
        if marks.label:
            entries.setdefault(marks.label, marks)
    parts, left, row = [], float(_LEFT), 0
    for label, marks in entries.items():
        wide = 30 + _LEGEND_CHARACTER * len(label)
        if left + wide > width and left > _LEFT:
            left, row = float(_LEFT), row + 1
        middle = top + _LEGEND * row + 8
        color = _color(marks)
        if marks.style in ("line", "dashed"):
            dashes = {"stroke-dasharray": "5 3"} if marks.style == "dashed" else {}
            stroke = {"d": f"M{left:.1f} {middle}h16", "stroke": color, "stroke-width": 2} | dashes
            parts.append(tag("path", stroke))
        else:
            hollow = {"fill": "#ffffff", "stroke": color, "stroke-width": 2}
            look = hollow if marks.style == "rings" else {"fill": color}
            parts.append(tag("circle", {"cx": f"{left + 8:.1f}", "cy": middle, "r": 4} | look))
        parts.append(_text(left + 21, middle + 4, label))
        left += wide
    return join(parts), row + 1 if entries else 0


def _every_point(every: Iterable[Marks], *, sideways: bool) -> Iterable[Point]:
    for marks in every:
        yield from ((a, b) for a, b in marks.points if math.isfinite(a) and math.isfinite(b))
        for at, low, high in marks.bars:
            yield from ((low, at), (high, at)) if sideways else ((at, low), (at, high))


def _axis(values: list[float], kind: str) -> Axis:
    low, high = min(values), max(values)
    if kind == "log":
        margin = (high / low) ** 0.04 if high > low else 1.5
        return log_axis(low / margin, high * margin, snug=True)
    margin = (high - low) * 0.05 or abs(low) * 0.05 or 1.0
    axis = linear_axis(low - margin, high + margin, snug=True)
    if kind == "loss" and axis.low > 0:
        return Axis(axis.low, axis.high, [tick for tick in axis.ticks if tick > 0], log=True)
    return axis


def _tick_text(tick: float) -> str:
    if abs(tick) >= 1e3:
        return compact(tick) if abs(tick) < 1e13 else power(f"{tick:.0e}")
    return power(f"{tick:g}")


def _color(marks: Marks) -> str:
    return marks.color if isinstance(marks.color, str) else COLORS[marks.color % len(COLORS)]


def _line(x1: float, y1: float, x2: float, y2: float, color: str, *, width: float = 1) -> Html:
    places = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    return tag("line", places, {"stroke": color, "stroke-width": width})


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    color: str = _INK,
    weight: str | None = None,
) -> Html:
    place = {
        "x": f"{x:.1f}",
        "y": f"{y:.1f}",
        "fill": color,
        "text-anchor": anchor,
        "font-weight": weight,
    }
    return tag("text", place, words)
