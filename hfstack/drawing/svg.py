"""Draw the shapes of pictures: lines, dots, boxes and texts in an SVG.

Positions are in pixels of the picture; text is escaped. A picture is shown as an image, in a report
or on a model card, so it carries its own colours: legible on white, distinct for the colour-blind.
"""

from collections.abc import Iterable

from hfstack.drawing.html import Html, tag

COLORS = ("#2a7f9e", "#c8643c", "#5a8f3d", "#8a5aa8", "#b08a1e", "#3c4f9e", "#a83c5f", "#444444")
INK, GREY, FAINT, PAPER = "#303030", "#808080", "#d8d8d8", "#ffffff"
FONT_SIZE = 12
_LETTER_WIDTH = 6.7  # of an average letter at FONT_SIZE


def draw_picture(title: str, parts: Iterable[object], *, width: float, height: float) -> str:
    """Return a whole SVG file: its parts on white, with a title for screen readers."""
    size = {"width": f"{width:g}", "height": f"{height:g}"}
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {width:g} {height:g}",
        **size,
        "role": "img",
        "font-family": "sans-serif",
        "font-size": FONT_SIZE,
    }
    paper = tag("rect", size, {"fill": PAPER})
    return f"{tag('svg', attributes, tag('title', title), paper, parts)}\n"


def move(x: float, y: float, parts: Iterable[object]) -> Html:
    """Return parts moved to another place of the picture."""
    return tag("g", {"transform": f"translate({x:.1f} {y:.1f})"}, parts)


def draw_text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    color: str = INK,
    weight: str | None = None,
    rotate: float = 0,
) -> Html:
    """Return a line of text that begins at a point, ends there or is centred on it.

    Args:
        anchor: `start`, `middle` or `end`.
        rotate: degrees clockwise around that point.
    """
    attributes = {
        "x": f"{x:.1f}",
        "y": f"{y:.1f}",
        "fill": color,
        "text-anchor": anchor,
        "font-weight": weight,
        "transform": f"rotate({rotate:g} {x:.1f} {y:.1f})" if rotate else None,
    }
    return tag("text", attributes, text)


def text_width(text: str) -> float:
    """Return about how wide a text is, in pixels."""
    return _LETTER_WIDTH * len(text)


def fit_label(name: str, most_letters: int = 16) -> str:
    """Return a name, truncated with an ellipsis when it is too long for its place."""
    return name if len(name) <= most_letters else f"{name[: most_letters - 1]}…"


def draw_line(
    start: tuple[float, float], end: tuple[float, float], color: str, *, width: float = 1
) -> Html:
    """Return a straight line between two points."""
    places = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    rounded = {name: f"{value:.1f}" for name, value in places.items()}
    return tag("line", rounded, {"stroke": color, "stroke-width": width})


def draw_polyline(
    points: Iterable[tuple[float, float]],
    color: str,
    *,
    width: float = 1.8,
    dashed: bool = False,
    opacity: float | None = None,
) -> Html:
    """Return a line through points."""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    look = {
        "fill": "none",
        "stroke": color,
        "stroke-width": width,
        "stroke-dasharray": "6 4" if dashed else None,
        "stroke-opacity": opacity,
    }
    return tag("path", {"d": path}, look)


def draw_dot(
    x: float, y: float, color: str, *, radius: float = 4, hollow: bool = False, opacity: float = 1
) -> Html:
    """Return a circle, filled or as a ring."""
    filled = {"fill": color, "fill-opacity": opacity if opacity < 1 else None}
    ring = {"fill": PAPER, "stroke": color, "stroke-width": 2}
    place = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{radius:.3g}"}
    return tag("circle", place, ring if hollow else filled)


def draw_box(
    x: float, y: float, width: float, height: float, color: str, *, opacity: float = 1
) -> Html:
    """Return a filled rectangle, given by its upper left corner."""
    place = {"x": x, "y": y, "width": width, "height": height}
    rounded = {name: f"{value:.1f}" for name, value in place.items()}
    return tag("rect", rounded, {"fill": color, "fill-opacity": f"{opacity:.3g}"})
